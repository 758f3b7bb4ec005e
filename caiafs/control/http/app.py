"""Paths and answers. Each file of `.stats` is one GET, byte for byte; rm of metrics.json is DELETE."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from functools import lru_cache, partial
from typing import Any

import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from caiafs.config import HttpAddress
from caiafs.control.http import openapi, page
from caiafs.control.http.answers import document, problem
from caiafs.control.http.figures import Figures, Unavailable
from caiafs.control.http.guard import Guard
from caiafs.errors import CaiafsError
from caiafs.history import MAX_COMMITS, History
from caiafs.virtual import render_json

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
RETRY_AFTER = "5"

Endpoint = Callable[[Request], Awaitable[Response]]


def make_app(figures: Figures, history: History, address: HttpAddress, token: str, version: str) -> ASGIApp:
    """The application of one mount, guarded."""
    described = render_json(openapi.describe(version))

    def file(name: str, status: Callable[[bytes], int] = lambda body: 200) -> Endpoint:
        async def answer(request: Request) -> Response:
            body = await figures.get(name)
            return document(body, status(body))

        return answer

    async def metrics(request: Request) -> Response:
        if request.method == "DELETE":
            await figures.clear()
            return Response(status_code=204)
        return document(await figures.get("metrics.json"))

    async def exposition(request: Request) -> Response:
        if wants_openmetrics(",".join(request.headers.getlist("accept"))):
            return Response(await figures.get("openmetrics"), headers={"content-type": OPENMETRICS})
        return Response(await figures.get("caiafs.prom"), headers={"content-type": TEXT})

    reading = trio.CapacityLimiter(1)  # History is for one thread at a time

    async def latest(limit: int) -> list[dict[str, Any]]:
        return await trio.to_thread.run_sync(history.latest, limit, limiter=reading)

    async def commits(request: Request) -> Response:
        return document(render_json({"commits": await latest(_limit(request))}))

    async def description(request: Request) -> Response:
        return document(described)

    async def status_page(request: Request) -> Response:
        made = await figures.shared("page", partial(page.make, figures, latest, version))
        return Response(made, media_type="text/html", headers=page.HEADERS)

    routes = [
        Route("/", status_page),
        Route("/metrics", exposition),
        Route("/api/v1/storage/stats", file("stats.json")),
        Route("/api/v1/storage/health", file("health.json", health_status)),
        Route("/api/v1/storage/config", file("config.json")),
        Route("/api/v1/storage/metrics", metrics, methods=["GET", "DELETE"]),
        Route("/api/v1/history", commits),
        Route("/api/v1/openapi.json", description),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={
            HTTPException: _refused,
            Unavailable: _unavailable,
            CaiafsError: _unavailable,
            Exception: _failed,
        },
    )
    app.router.redirect_slashes = False
    return Guard(app, address, token)


def health_status(body: bytes) -> int:
    """The status for a health.json: 200 while all is well, else 503."""
    return 200 if json.loads(body)["healthy"] is True else 503


@lru_cache(maxsize=64)
def wants_openmetrics(accept: str) -> bool:
    """Whether OpenMetrics is preferred over the older text format, which cat shows too."""
    best = {"application/openmetrics-text": 0.0, "text/plain": 0.0, "*/*": 0.0}
    for part in accept.split(","):
        kind, *parameters = (word.strip().lower() for word in part.split(";"))
        quality = next((word[2:] for word in parameters if word.startswith("q=")), "1")
        if kind in best:
            try:
                best[kind] = max(best[kind], float(quality))
            except ValueError:
                continue
    return best["application/openmetrics-text"] > max(best["text/plain"], best["*/*"])


def _limit(request: Request) -> int:
    given = request.query_params.getlist("limit")
    if not given:
        return 20
    if len(given) > 1 or not given[0].isascii() or not given[0].isdecimal() or len(given[0]) > 9:
        raise HTTPException(400, f"limit is one number from 1 to {MAX_COMMITS}")
    limit = int(given[0])
    if not 1 <= limit <= MAX_COMMITS:
        raise HTTPException(400, f"limit is one number from 1 to {MAX_COMMITS}")
    return limit


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers: dict[str, Any] = dict(error.headers or {})
    messages = {
        404: "nothing is served there; /api/v1/openapi.json says what is",
        405: f"only {headers.get('Allow', '')} can be done there",
    }
    return problem(error.status_code, messages.get(error.status_code, error.detail), headers)


async def _unavailable(request: Request, error: Exception) -> Response:
    return problem(503, str(error), {"retry-after": RETRY_AFTER})


async def _failed(request: Request, error: Exception) -> Response:
    # Starlette logs nothing itself: it raises the error again, and hypercorn logs that with its traceback.
    return problem(500, "the server failed at this request; the daemon's log has the details")
