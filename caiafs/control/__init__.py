"""The command socket: how `caiafs commit`, `sync`, `status` and `umount` talk to a running mount.

The daemon listens on the unix socket `control` in its state directory (`serve`, a trio task).
The command line is a short-lived blocking client (`call`), which finds the daemon through
MOUNTPOINT/.stats/config.json. One connection carries one command, as lines of JSON:

    → {"command": "commit", "arguments": {"message": "…"}}
    ← {"progress": {"done": 3, "total": 10, "text": "committing"}}      zero or more
    ← {"result": {"commit": "4f1c…", "changes": 3}}
    or {"error": {"message": "…", "errno": 5, "exit_code": 1}}

Only root and the user that the daemon runs as may talk. Weighed and not chosen: commands hidden
in setxattr or ioctl (they would travel the path that may be stuck), and HTTP (it has a life,
a port and a token of its own).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from caiafs.control.client import ControlError, Progress, call, call_socket, locate, read_stats
from caiafs.control.mounts import FSTYPE, Mount, mount_at, mount_of, mount_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    import trio

    from caiafs.control.server import Handler

__all__ = [
    "FSTYPE",
    "ControlError",
    "Mount",
    "Progress",
    "call",
    "call_socket",
    "locate",
    "mount_at",
    "mount_of",
    "mount_table",
    "read_stats",
    "serve",
]


async def serve(
    state_dir: str,
    handlers: Mapping[str, Handler],
    *,
    task_status: trio.TaskStatus[None] | None = None,
) -> None:
    """Answer commands until cancelled; `nursery.start(serve, …)` returns once the socket listens.

    A handler is called as `await handler(arguments, progress)` and returns a dict for JSON. Its
    CaiafsError becomes the client's error; anything else it raises is logged and costs that one
    command. It runs to its end even when its client goes away. See `caiafs.control.server`.
    """
    # Imported here, since trio takes a quarter of a second that no client should pay.
    from caiafs.control import server

    if task_status is None:
        await server.serve(state_dir, handlers)
    else:
        await server.serve(state_dir, handlers, task_status=task_status)
