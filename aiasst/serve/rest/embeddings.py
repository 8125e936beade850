"""POST /v1/embeddings: texts in, vectors out. Knows no engine."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from aiasst.serve.refusals import Refusal
from aiasst.serve.rest.bodies import JsonRoute
from aiasst.serve.rest.common import caller_of, texts_or_ids
from aiasst.serve.rest.fields import Strict
from aiasst.serve.rest.sse import ClientGoneError, nobody_there, until_gone
from aiasst.serve.service import Service, Vectors

MOST_TEXTS = 2048
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Text = Annotated[str, Field(min_length=1)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]


class EmbeddingFields(Strict):
    """A request."""

    model: str
    """One of GET /v1/models."""
    input: Text | Annotated[list[Text] | TokenIds | list[TokenIds], Field(min_length=1, max_length=MOST_TEXTS)]
    """A text, or its token ids (of the model's own tokenizer), or a list of either."""
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    """Only the size that the model's vectors have: none here was trained to be cut."""
    user: str | None = None
    """Changes nothing."""


class EmbeddingRow(BaseModel):
    """The vector of one text."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    """Numbers, or little-endian float32 in base64."""


class EmbeddingUsage(BaseModel):
    """Tokens of all texts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """The vectors, in the order of the texts."""

    object: Literal["list"]
    model: str
    data: list[EmbeddingRow]
    usage: EmbeddingUsage


def router(service: Service) -> APIRouter:
    """The route."""
    made = APIRouter(tags=["embeddings"], route_class=JsonRoute)

    @made.post("/embeddings", response_model=EmbeddingList, summary="Turn texts into vectors")
    async def create(fields: EmbeddingFields, request: Request) -> Response:
        """Vectors of texts, by a model that embeds."""
        model = service.model(fields.model).name
        try:
            vectors = await until_gone(request, service.embed(model, texts_or_ids(fields.input), caller_of(request)))
        except ClientGoneError:
            return nobody_there()
        return JSONResponse(_document(fields, model, vectors))

    return made


def _document(fields: EmbeddingFields, model: str, vectors: Vectors) -> dict[str, Any]:
    size = vectors.values.shape[1]
    if fields.dimensions not in (None, size):
        raise Refusal(
            "unsupported",
            f"the vectors of {model} have {size} dimensions and were not trained to be cut",
            "leave dimensions out",
            parameter="dimensions",
        )
    written = _base64 if fields.encoding_format == "base64" else _floats
    return {
        "object": "list",
        "model": model,
        "data": [
            {"object": "embedding", "index": index, "embedding": written(row)}
            for index, row in enumerate(vectors.values)
        ],
        "usage": {"prompt_tokens": vectors.tokens, "total_tokens": vectors.tokens},
    }


def _floats(row: np.ndarray[Any, np.dtype[np.float32]]) -> list[float]:
    numbers: list[float] = row.tolist()
    return numbers


def _base64(row: np.ndarray[Any, np.dtype[np.float32]]) -> str:
    return base64.b64encode(row.astype("<f4").tobytes()).decode()
