"""Who is let in, before any path is looked at: the Host header, the token, and what answers carry.

    any request      its Host names this machine, not a name that someone else's page made point here
    beyond loopback  a token, always
    on loopback      a token for whatever is not GET or HEAD

The token comes as `Authorization: Bearer TOKEN`. To look, a browser may also send it as the password
of Basic authentication, whatever the user's name: it asks for it by itself. To change something it
may not, since a browser sends that on its own, also for other pages. There is no CORS: no page
but our own can read an answer.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import re
from collections.abc import Mapping
from functools import lru_cache

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from caiafs.config import HttpAddress
from caiafs.control.http.answers import problem

LOOKING = ("GET", "HEAD")
SECURITY: Mapping[str, str] = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}
"""Headers of every answer that does not bring its own."""
_SECURITY = [(name.encode(), value.encode()) for name, value in SECURITY.items()]
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::[0-9]{1,5})?", re.ASCII | re.IGNORECASE)


@lru_cache(maxsize=64)
def _is_ours(host: str) -> bool:
    """Whether *host* is an address, or localhost."""
    name = host.rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


class Guard:
    """Stands before *app*, which is served at *address*."""

    def __init__(self, app: ASGIApp, address: HttpAddress, token: str) -> None:
        self._app = app
        self._is_local, self._is_socket = address.is_local, bool(address.path)
        self._token = token.encode("ascii")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what is not let in; hand on the rest."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                brought = {name for name, _ in message["headers"]}
                message["headers"] += [header for header in _SECURITY if header[0] not in brought]
            await send(message)

        headers = Headers(scope=scope)
        app = self._app
        if not self.knows_host(headers.getlist("host")):
            app = problem(421, "the Host header names another machine; use the address that is served")
        elif (scope["method"] not in LOOKING or not self._is_local) and not self.knows_token(
            scope["method"], headers.getlist("authorization")
        ):
            app = problem(
                401,
                "this needs the token, as `Authorization: Bearer TOKEN`; it is in the file that "
                "`caiafs status` names",
                {"www-authenticate": self._challenge(scope["method"])},
            )
        await app(scope, receive, send_guarded)

    def knows_host(self, hosts: list[str]) -> bool:
        """Whether a Host header is one that is meant for us.

        On loopback: an address, or localhost. A name can be made to point at 127.0.0.1 by anyone, and
        a browser then lets that one's page read the answers. Ports are not compared: tunnels change
        them. Beyond loopback every request carries a token, which no such page has, and names are
        how machines are known there. A unix socket is out of browsers' reach.
        """
        if len(hosts) != 1:
            return False
        match = _HOST.fullmatch(hosts[0])
        if match is None:
            return False
        if self._is_socket or not self._is_local:
            return True
        return _is_ours(match[1].lower())

    def knows_token(self, method: str, given: list[str]) -> bool:
        """Whether the token is there. Takes the same time for every wrong one."""
        if len(given) != 1:
            return False
        scheme, _, rest = given[0].partition(" ")
        secret = b""
        if scheme.lower() == "bearer":
            secret = rest.strip().encode("latin-1")
        elif scheme.lower() == "basic" and method in LOOKING:
            try:
                secret = base64.b64decode(rest.strip(), validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        return hmac.compare_digest(secret, self._token)

    def _challenge(self, method: str) -> str:
        bearer = 'Bearer realm="caiafs"'
        return (
            f'{bearer}, Basic realm="caiafs: the token is the password", charset="UTF-8"'
            if method in LOOKING
            else bearer
        )
