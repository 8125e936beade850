"""Refusals in OpenAI's form, {"error": {"message", "type", "param", "code"}}. Knows no route."""

from __future__ import annotations

import math
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from aiasst.serve.guard.answers import ERROR_TYPES, error_document
from aiasst.serve.refusals import Refusal
from aiasst.serve.service import Caller
from aiasst.serve.telemetry.request_log import note_refusal


class ErrorFields(BaseModel):
    """What is wrong."""

    message: str
    """With what to do next."""
    type: str
    param: str | None = None
    """The field of the request."""
    code: str | None = None


class ErrorBody(BaseModel):
    """Every answer that is an error."""

    error: ErrorFields


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "The request makes no sense, or asks for what is not supported"},
    401: {"model": ErrorBody, "description": "No API key, or none that is known"},
    403: {"model": ErrorBody, "description": "From here this may not be asked"},
    404: {"model": ErrorBody, "description": "There is no such model, or nothing at this path"},
    413: {"model": ErrorBody, "description": "The body is too large, or the prompt is longer than the context"},
    429: {"model": ErrorBody, "description": "Too many requests; Retry-After says when to ask again"},
    503: {"model": ErrorBody, "description": "The service is stopping, or the model cannot be used"},
    504: {"model": ErrorBody, "description": "The deadline was over before the answer began"},
    "default": {"model": ErrorBody, "description": "Any other failure"},
}
"""For the OpenAPI document of every route."""


def body_of(refusal: Refusal) -> dict[str, Any]:
    """The document of a refusal, in the words of the guard's own."""
    return error_document(refusal)


def answer_to(refusal: Refusal) -> JSONResponse:
    """The response of a refusal, with Retry-After where it may be tried again."""
    headers = {} if refusal.retry_after is None else {"Retry-After": str(math.ceil(refusal.retry_after))}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_document(refusal), refusal.status, headers)


def install(app: FastAPI) -> None:
    """Let `app` answer in this form whatever goes wrong."""

    async def refused(request: Request, refusal: Refusal) -> JSONResponse:
        note_refusal(refusal.reason, getattr(request.state, "caller", Caller()).name)
        return answer_to(refusal)

    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        return await refused(request, refusal_of(error))

    async def unknown(_: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
        kind = ERROR_TYPES.get(error.status_code, "invalid_request_error")
        body = {"error": {"message": str(error.detail), "type": kind, "param": None, "code": code}}
        return JSONResponse(body, error.status_code, error.headers)

    async def broken(_: Request, __: Exception) -> JSONResponse:
        words = "an internal error; the log has more"
        return JSONResponse({"error": {"message": words, "type": "server_error", "param": None, "code": None}}, 500)

    app.exception_handler(Refusal)(refused)
    app.exception_handler(RequestValidationError)(malformed)
    app.exception_handler(HTTPException)(unknown)
    app.exception_handler(Exception)(broken)


def refusal_of(error: RequestValidationError) -> Refusal:
    """What is wrong with a body, by its first fault."""
    fault: Any = error.errors()[0]
    where = [part for part in fault["loc"] if part != "body"]
    name = ".".join(str(part) for part in where) or None
    if fault["type"] == "json_invalid":
        return Refusal("invalid", f"the body is not valid JSON: {fault.get('ctx', {}).get('error', fault['msg'])}")
    if fault["type"] == "extra_forbidden":
        return Refusal("invalid", f"unrecognized request argument: {name}", "leave it out", parameter=name)
    if fault["type"] == "missing":
        return Refusal("invalid", f"missing required parameter: {name or 'the body'}", parameter=name)
    return Refusal("invalid", f"{name or 'the body'}: {fault['msg']}", parameter=name)
