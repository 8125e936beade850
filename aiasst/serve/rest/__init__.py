"""OpenAI's REST as existing clients speak it: their documents in and out, over `service.Service`. Knows no engine.

models.py        GET /v1/models, /v1/models/{id}
chat.py          POST /v1/chat/completions
completions.py   POST /v1/completions
embeddings.py    POST /v1/embeddings
responses.py     POST /v1/responses (text), GET and DELETE /v1/responses/{id}; kept.py: what is kept of them

errors.py        refusals in OpenAI's form
fields.py        what requests have in common; asked.py: what becomes of it
answering.py     several answers at once, and what they took; reply.py: as a document or as events
tools.py         calls of functions in an answer
sse.py           server-sent events, and clients that go away
"""

from __future__ import annotations

from fastapi import APIRouter

from aiasst.serve.rest import chat, completions, embeddings, models, responses
from aiasst.serve.rest.errors import ERRORS
from aiasst.serve.service import Service

__all__ = ["router"]


def router(service: Service) -> APIRouter:
    """All routes of this folder, over `service`."""
    made = APIRouter(prefix="/v1", responses=ERRORS)
    for module in (models, chat, completions, embeddings, responses):
        made.include_router(module.router(service))
    return made
