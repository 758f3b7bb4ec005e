"""The paths, described for programs: an OpenAPI 3.1 document, served at /api/v1/openapi.json.

Written by hand beside app.py, and held to it by tests that let schemathesis try every path.
"""

from __future__ import annotations

from typing import Any

from caiafs.history import MAX_COMMITS, MAX_FILES

_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_HEX = {"type": "string", "pattern": "^[0-9a-f]{40}$"}


def describe(version: str) -> dict[str, Any]:
    """The document, for caiafs *version*."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "caiafs",
            "version": version,
            "summary": "Figures, health and history of one mount.",
            "description": (
                "The same bytes as the files under MOUNTPOINT/.stats: cat is GET, rm is DELETE. GET and "
                "HEAD are open to this machine; anything else, and everything from another machine, "
                "needs the token."
            ),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{}, {"bearer": []}],
        "paths": {
            "/": _get("status_page", "The status page, for people.", "text/html", _TEXT),
            "/metrics": _get(
                "exposition",
                "All metrics, for Prometheus.",
                "text/plain",
                _TEXT,
                {"application/openmetrics-text": {"schema": _TEXT}},
            ),
            "/api/v1/storage/stats": _json("stats", "stats.json: figures of every part.", "Stats"),
            "/api/v1/storage/config": _json("config", "config.json: what is in force, and why.", "Config"),
            "/api/v1/storage/health": _health(),
            "/api/v1/storage/metrics": {
                **_json("metrics", "metrics.json: storage operations since the last clearing.", "Metrics"),
                "delete": {
                    "operationId": "clear_metrics",
                    "summary": "Let metrics.json begin again. Prometheus' counters go on.",
                    "security": [{"bearer": []}],
                    "responses": {
                        "204": {"description": "Done."},
                        **_problems("401", "421", "503", "default"),
                    },
                },
            },
            "/api/v1/history": _history(),
            "/api/v1/openapi.json": _json("openapi", "This document.", None),
        },
        "components": {
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The token in `http_token_file`. To look, also as a password: Basic.",
                }
            },
            "responses": {
                "Problem": {
                    "description": "What was wrong, and the way out.",
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
                }
            },
            "schemas": _schemas(),
        },
    }


def _problems(*statuses: str) -> dict[str, Any]:
    return {status: {"$ref": "#/components/responses/Problem"} for status in statuses}


def _get(
    name: str, summary: str, media: str, schema: dict[str, Any], more: dict[str, Any] | None = None
) -> dict[str, Any]:
    content = {media: {"schema": schema}, **(more or {})}
    return {
        "get": {
            "operationId": name,
            "summary": summary,
            "responses": {
                "200": {"description": summary, "content": content},
                **_problems("401", "421", "503", "default"),
            },
        }
    }


def _json(name: str, summary: str, schema: str | None) -> dict[str, Any]:
    described = {"$ref": f"#/components/schemas/{schema}"} if schema else {"type": "object"}
    return _get(name, summary, "application/json", described)


def _health() -> dict[str, Any]:
    described = _json("health", "health.json: all is well.", "Health")
    either = {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in ("Health", "Problem")]}
    described["get"]["responses"]["503"] = {
        "description": "health.json: something is not; or a problem, where the mount does not answer.",
        "content": {"application/json": {"schema": either}},
    }
    return described


def _history() -> dict[str, Any]:
    described = _json("history", "The latest commits of the branch, the last one first.", "History")
    described["get"]["parameters"] = [
        {
            "name": "limit",
            "in": "query",
            "description": "How many commits, at most.",
            "schema": {"type": "integer", "minimum": 1, "maximum": MAX_COMMITS, "default": 20},
        }
    ]
    described["get"]["responses"] |= _problems("400")
    return described


def _object(needed: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": needed, "required": list(needed), **more}


def _schemas() -> dict[str, Any]:
    anything = {"type": "object"}
    tier = _object({"state": {"enum": ["healthy", "degraded", "failed"]}})
    nanoseconds = [f"{name}_duration_ns" for name in ("total", "min", "max", "avg", "p50", "p99")]
    counts = ["count", "success_count", "failure_count"]
    duration = dict.fromkeys(counts + nanoseconds, _COUNT)
    operation = _object({**duration, "success_rate": {"type": "number", "minimum": 0, "maximum": 1}})
    by_operation = {"type": "object", "additionalProperties": operation}
    return {
        "Problem": _object({"error": _object({"status": _COUNT, "reason": _TEXT, "message": _TEXT})}),
        "Health": _object(
            {
                "healthy": {"type": "boolean"},
                "state": {"enum": ["healthy", "degraded", "failed"]},
                "reasons": {"type": "array", "items": _TEXT},
                "backends": {"type": "object", "additionalProperties": tier},
            }
        ),
        "Stats": _object(
            {
                "storage_stats": _object(
                    dict.fromkeys(("config", "memory", "journal", "git", "commits"), anything)
                )
            }
        ),
        "Metrics": _object(
            {
                "metrics_summary": _object(
                    {
                        "by_backend": {"type": "object", "additionalProperties": by_operation},
                        "total_operations": _COUNT,
                    }
                )
            }
        ),
        "Config": _object({"pid": _COUNT, "branch": _TEXT, "settings": anything}),
        "History": _object(
            {
                "commits": {
                    "type": "array",
                    "maxItems": MAX_COMMITS,
                    "items": {"$ref": "#/components/schemas/Commit"},
                }
            }
        ),
        "Commit": _object(
            {
                "commit": _HEX,
                "time": {"type": "integer", "description": "Seconds since 1970."},
                "author": _TEXT,
                "subject": _TEXT,
                "parents": {"type": "array", "items": _HEX},
                "files": {
                    "type": "array",
                    "maxItems": MAX_FILES,
                    "description": "What differs from the first parent.",
                    "items": _object(
                        {"path": _TEXT, "change": {"enum": ["added", "changed", "removed", "unreadable"]}}
                    ),
                },
                "more_files": {
                    "type": "boolean",
                    "description": "Whether there are more files than are told.",
                },
            }
        ),
    }
