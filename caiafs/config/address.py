"""Where HTTP is served: ADDR:PORT or unix:PATH, as it is written in a setting."""

from __future__ import annotations

import ipaddress
import os
import re
from typing import NamedTuple


class HttpAddress(NamedTuple):
    """Where HTTP is served: a unix socket at *path*, or TCP at *host* (a literal address) and *port*."""

    host: str = ""
    port: int = 0
    path: str = ""

    @property
    def is_local(self) -> bool:
        """True if no other machine can reach it."""
        if self.path:
            return True
        address = ipaddress.ip_address(self.host)
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return (mapped or address).is_loopback  # of a mapped one, Python before 3.13 says no

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


_HTTP_ALLOWED = (
    "ADDR:PORT with an address of this machine and a port from 0 to 65535 (0: any free one), such as "
    "127.0.0.1:8080 or [::1]:8080, or unix:PATH, with at most 107 bytes of path"
)


def parse_http(text: str) -> HttpAddress:
    """Read where HTTP is to be served; ValueError says what is allowed.

    No names but localhost: what a name means is found out later, elsewhere, and may change.
    """
    if text.startswith("unix:"):
        path = os.path.expanduser(text.removeprefix("unix:"))
        if not path or path.endswith("/") or len(os.fsencode(os.path.abspath(path))) > 107:
            raise ValueError(_HTTP_ALLOWED)
        return HttpAddress(path=os.path.abspath(path))
    host, _, port = text.rpartition(":")
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError(_HTTP_ALLOWED)
    host = "127.0.0.1" if host.lower() == "localhost" else host
    bracketed = re.fullmatch(r"\[(.*)\]", host)
    try:
        address = ipaddress.IPv6Address(bracketed[1]) if bracketed else ipaddress.IPv4Address(host)
    except ValueError:
        raise ValueError(_HTTP_ALLOWED) from None
    return HttpAddress(str(address), int(port))
