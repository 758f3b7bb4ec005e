"""The two kinds of JSON that leave the server: a document, and what was wrong with a request."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import Response

from caiafs.virtual import render_json


def document(body: bytes, status: int = 200) -> Response:
    """JSON that is rendered already."""
    return Response(body, status, media_type="application/json")


def problem(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error, in the shape that the command socket has, too."""
    body = {"error": {"status": status, "reason": HTTPStatus(status).phrase, "message": message}}
    return Response(render_json(body), status, headers, media_type="application/json")
