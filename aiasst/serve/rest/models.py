"""GET /v1/models and /v1/models/{id}: which models there are, and how they are. Knows no engine."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from aiasst.serve.service import Kind, ModelState, Service, State


class ModelFields(BaseModel):
    """A model; what is beyond OpenAI's four fields is an extension."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "aiasst"
    kind: Kind
    task: str
    state: State
    problem: str | None = None
    """Why it is "failed"."""
    context_length: int
    weight_bytes: int
    has_chat_template: bool
    running: int
    """Requests under way."""
    waiting: int
    """Requests in line."""


class ModelList(BaseModel):
    """All models."""

    object: Literal["list"] = "list"
    data: list[ModelFields]


def router(service: Service) -> APIRouter:
    """Both routes."""
    made = APIRouter(tags=["models"])

    @made.get("/models", summary="List the models")
    async def every() -> ModelList:
        """All models, loaded or not."""
        return ModelList(data=[_fields(model) for model in service.models()])

    @made.get("/models/{model:path}", summary="One model")
    async def one(model: str) -> ModelFields:
        """How one of them is."""
        return _fields(service.model(model))

    return made


def _fields(model: ModelState) -> ModelFields:
    return ModelFields(
        id=model.name,
        created=model.created,
        kind=model.kind,
        task=model.task,
        state=model.state,
        problem=model.problem or None,
        context_length=model.context_length,
        weight_bytes=model.weight_bytes,
        has_chat_template=model.has_chat_template,
        running=model.running,
        waiting=model.waiting,
    )
