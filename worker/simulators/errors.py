"""How each server words a failure."""

from __future__ import annotations

from typing import Any

from worker.simulators.dialects import Dialect


class HttpError(Exception):
    """The server refuses with a status and a detail of its own choosing (its `HTTPException`)."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


class ServerError(Exception):
    """An exception of type ``kind`` gets out of the server's code: 500."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text


class OtherAnswer(Exception):
    """An answer that follows none of the server's rules for errors."""

    def __init__(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.body = body
        self.headers = headers or {}


def error_answer(dialect: Dialect, error: HttpError | ServerError | OtherAnswer) -> tuple[int, Any, dict[str, str]]:
    """Status, JSON body and headers."""
    if isinstance(error, OtherAnswer):
        return error.status, error.body, error.headers
    if isinstance(error, HttpError):
        return error.status, _http_body(dialect, error), {}
    return 500, _exception_body(dialect, error), {}


def _http_body(dialect: Dialect, error: HttpError) -> dict[str, Any]:
    match dialect.errors:
        case "forge":
            return {"detail": error.detail}
        case "plain":
            return {"error": "HTTPException", "detail": error.detail, "body": "", "errors": ""}
        case "code":
            return {
                "error": "HTTPException",
                "code": error.status,
                "detail": error.detail,
                "body": "",
                "errors": f"{error.status}: {error.detail}",
            }


def _exception_body(dialect: Dialect, error: ServerError) -> dict[str, Any]:
    match dialect.errors:
        case "forge":
            return {"error": error.kind, "detail": "", "body": "", "message": error.text}
        case "plain":
            return {"error": error.kind, "detail": "", "body": "", "errors": error.text}
        case "code":
            return {"error": error.kind, "code": 500, "detail": "", "body": "", "errors": error.text}
