"""The command socket: both ends, over a real socket, without a mount."""

from __future__ import annotations

import errno
import functools
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from caiafs import control
from caiafs.control import client, mounts
from caiafs.control import server as server_module
from caiafs.control.client import ControlError, Progress
from caiafs.control.server import Caller
from caiafs.errors import JournalError, MountError, UsageError


async def echo(arguments: dict[str, Any], progress: Progress) -> dict[str, Any]:
    return {"arguments": arguments}


async def count(arguments: dict[str, Any], progress: Progress) -> dict[str, Any]:
    for done in range(5):
        progress(done, 5, "counting")
        await trio.sleep(0.01)
    return {"done": 5}


async def full(arguments: dict[str, Any], progress: Progress) -> dict[str, Any]:
    async with trio.open_nursery() as nursery:  # handlers' own nurseries wrap what they raise
        nursery.start_soon(fail_with, JournalError("the disk is full", errno.ENOSPC))
    return {}


async def misuse(arguments: dict[str, Any], progress: Progress) -> dict[str, Any]:
    raise UsageError("no such thing")


async def bug(arguments: dict[str, Any], progress: Progress) -> dict[str, Any]:
    raise ZeroDivisionError


async def unspeakable(arguments: dict[str, Any], progress: Progress) -> dict[str, Any]:
    return {"bytes": b"not for JSON"}


async def never(arguments: dict[str, Any], progress: Progress) -> dict[str, Any]:
    while True:
        progress(1, 2, "stuck")
        await trio.sleep(0.01)


async def fail_with(problem: Exception) -> None:
    raise problem


HANDLERS = {
    "echo": echo,
    "count": count,
    "full": full,
    "misuse": misuse,
    "bug": bug,
    "unspeakable": unspeakable,
    "never": never,
}


@pytest.fixture
def state(tmp_path: Path) -> str:
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    return str(directory)


def serving(state: str, body: Callable[[], Any], handlers: Any = None) -> Any:
    """Run *body* in a thread while the server serves *state*; what either raises comes out bare."""

    async def main() -> Any:
        async with trio.open_nursery() as nursery:
            serve = functools.partial(control.serve, state, handlers or HANDLERS)
            await nursery.start(serve)
            try:
                return await trio.to_thread.run_sync(body)
            finally:
                nursery.cancel_scope.cancel()

    try:
        return trio.run(main)
    except BaseExceptionGroup as group:
        (problem,) = group.exceptions
    raise problem


def ask(state: str, command: str, arguments: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    answer: dict[str, Any] = serving(state, lambda: control.call_socket(state, command, arguments, **more))
    return answer


def raw(state: str, request: bytes, *, close: bool = True) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as sock:
        client._connect(sock, state)
        try:
            sock.sendall(request)
            if close:
                sock.shutdown(socket.SHUT_WR)
        except BrokenPipeError:
            pass
        data = b""
        while chunk := sock.recv(65536):
            data += chunk
    answer: dict[str, Any] = json.loads(data)
    return answer


def test_a_command_gets_its_arguments_and_its_result_comes_back(state: str) -> None:
    assert ask(state, "echo", {"message": "grüße"}) == {"arguments": {"message": "grüße"}}


def test_progress_is_seen_before_the_result(state: str) -> None:
    seen: list[tuple[int, int, str]] = []
    assert ask(state, "count", on_progress=lambda *step: seen.append(step)) == {"done": 5}
    assert seen[-1] == (4, 5, "counting")
    assert seen == sorted(seen)


def test_a_result_can_be_told_before_the_handler_has_returned(state: str) -> None:
    told = threading.Event()

    async def early(arguments: dict[str, Any], caller: Caller) -> dict[str, Any]:
        caller.answer({"told": "early"})
        caller.answer({"told": "twice"})
        caller(1, 2, "not after the result")
        await trio.to_thread.run_sync(told.wait)
        raise AssertionError("nobody is told of this any more")

    def body() -> None:
        try:
            assert control.call_socket(state, "early", timeout=5) == {"told": "early"}
        finally:
            told.set()

    serving(state, body, {"early": early})


def test_a_result_waits_for_progress_that_is_on_its_way(state: str) -> None:
    """A line that is half sent is sent to its end."""

    async def big(arguments: dict[str, Any], caller: Caller) -> dict[str, Any]:
        caller(0, 1, "x" * 10_000_000)
        await trio.sleep(0.01)
        caller.answer({"x": "early"})
        return {"x": "late"}

    seen: list[int] = []
    answer = serving(
        state,
        lambda: control.call_socket(state, "big", on_progress=lambda *step: seen.append(len(step[2]))),
        {"big": big},
    )
    assert answer == {"x": "late"}
    assert seen == [10_000_000]


def test_last_progress_is_sent_even_when_the_handler_never_waits(state: str) -> None:
    async def quick(arguments: dict[str, Any], progress: Progress) -> dict[str, Any]:
        for done in range(100):
            progress(done, 100, "")
        return {}

    seen: list[int] = []
    serving(
        state,
        lambda: control.call_socket(state, "quick", on_progress=lambda done, *_: seen.append(done)),
        {"quick": quick},
    )
    assert seen == [99]


def test_errors_keep_message_errno_and_exit_code(state: str) -> None:
    with pytest.raises(ControlError, match="the disk is full") as caught:
        ask(state, "full")
    assert (caught.value.errno, caught.value.exit_code) == (errno.ENOSPC, 1)
    with pytest.raises(ControlError, match="no such thing") as caught:
        ask(state, "misuse")
    assert (caught.value.errno, caught.value.exit_code) == (errno.EINVAL, 2)


def test_a_bug_costs_its_command_and_is_logged(state: str, caplog: pytest.LogCaptureFixture) -> None:
    def body() -> None:
        for command in ("bug", "unspeakable"):
            with pytest.raises(ControlError, match=f"internal error in '{command}'"):
                control.call_socket(state, command)
        assert control.call_socket(state, "echo") == {"arguments": {}}

    serving(state, body)
    assert "ZeroDivisionError" in caplog.text


def test_unknown_command_names_the_known_ones(state: str) -> None:
    with pytest.raises(ControlError, match="bug, count, echo"):
        ask(state, "drian")


@pytest.mark.parametrize(
    ("request_line", "message"),
    [
        (b"nonsense\n", "a request is one line"),
        (b"[]\n", "a request is one line"),
        (b'{"command": 5}\n', "a request is one line"),
        (b'{"command": "echo", "arguments": [1]}\n', "a request is one line"),
        (b"[" * 60000 + b"\n", "a request is one line"),
        (b"\xff\n", "a request is one line"),
        (b'{"command": "echo"}', "ended before"),
        (b"x" * (server_module.MAX_REQUEST + 1), "at most 1048576"),
    ],
)
def test_bad_requests_are_answered(state: str, request_line: bytes, message: str) -> None:
    answer = serving(state, lambda: raw(state, request_line))
    assert message in answer["error"]["message"]
    assert answer["error"]["exit_code"] == 2


def test_a_silent_client_is_told_and_let_go(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "REQUEST_TIMEOUT", 0.05)
    answer = serving(state, lambda: raw(state, b"", close=False))
    assert "no request came" in answer["error"]["message"]


def test_a_client_that_goes_away_disturbs_nobody_and_its_command_ends(state: str) -> None:
    ended: list[bool] = []

    async def slow(arguments: dict[str, Any], progress: Progress) -> dict[str, Any]:
        for done in range(20):
            progress(done, 20, "x" * 10000)
            await trio.sleep(0.005)
        ended.append(True)
        return {}

    def body() -> None:
        sock = socket.socket(socket.AF_UNIX)
        client._connect(sock, state)
        sock.sendall(b'{"command": "slow"}\n')
        sock.recv(10)
        sock.close()
        assert control.call_socket(state, "echo") == {"arguments": {}}
        while not ended:
            assert control.call_socket(state, "echo") == {"arguments": {}}

    serving(state, body, {"slow": slow, "echo": echo})


def test_a_client_that_does_not_read_is_given_up(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "LINGER", 0.05)

    async def big(arguments: dict[str, Any], progress: Progress) -> dict[str, Any]:
        progress(0, 1, "x" * 10_000_000)
        await trio.sleep(0.01)
        return {"x": "x" * 10_000_000}

    def body() -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            client._connect(sock, state)
            sock.sendall(b'{"command": "big"}\n')
            assert control.call_socket(state, "echo", timeout=5) == {"arguments": {}}
            sock.settimeout(5)
            data = b""
            while not data.endswith(b"\n") and (chunk := sock.recv(1 << 20)):
                data += chunk

    serving(state, body, {"big": big, "echo": echo})


def test_progress_that_stands_still_times_out(state: str) -> None:
    with pytest.raises(ControlError, match=r"'never' within 0\.2 s; the last it said is: stuck") as caught:
        ask(state, "never", timeout=0.2)
    assert caught.value.errno == errno.ETIMEDOUT


def test_progress_that_moves_keeps_the_client_waiting(state: str) -> None:
    async def steady(arguments: dict[str, Any], progress: Progress) -> dict[str, Any]:
        for done in range(10):
            progress(done, 10, "")
            await trio.sleep(0.05)
        return {}

    serving(state, lambda: control.call_socket(state, "steady", timeout=0.25), {"steady": steady})


def test_daemon_that_ends_during_a_command_is_said(state: str) -> None:
    async def main() -> str:
        async with trio.open_nursery() as nursery:
            said: list[str] = []

            def body() -> None:
                try:
                    control.call_socket(state, "never", timeout=10)
                except ControlError as problem:
                    said.append(str(problem))

            async with trio.open_nursery() as server:
                await server.start(functools.partial(control.serve, state, HANDLERS))
                nursery.start_soon(trio.to_thread.run_sync, body)
                await trio.sleep(0.1)
                server.cancel_scope.cancel()
        return said[0]

    assert "ended before it answered" in trio.run(main)


def test_socket_is_private_and_goes_with_the_server(state: str) -> None:
    path = os.path.join(state, "control")

    def body() -> None:
        found = os.lstat(path)
        assert stat.S_ISSOCK(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == 0o600

    before = os.umask(0)
    try:
        serving(state, body)
    finally:
        os.umask(before)
    assert not os.path.lexists(path)


def test_stale_socket_is_replaced_and_a_live_one_is_not(state: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.path.join(state, "control"))
    assert ask(state, "echo") == {"arguments": {}}

    def body() -> None:
        with pytest.raises(MountError, match="another process answers"):
            serving(state, lambda: None)
        assert control.call_socket(state, "echo") == {"arguments": {}}

    serving(state, body)


def test_symlink_or_file_in_the_sockets_place_is_refused(state: str, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("x")
    os.symlink(precious, os.path.join(state, "control"))
    with pytest.raises(MountError, match="not a socket"):
        serving(state, lambda: None)
    assert precious.read_text() == "x"


def test_open_state_directory_is_refused(state: str) -> None:
    os.chmod(state, 0o755)
    with pytest.raises(MountError, match="chmod 700"):
        serving(state, lambda: None)


def test_paths_longer_than_a_socket_address_work(tmp_path: Path) -> None:
    state = tmp_path
    for _ in range(5):
        state /= "d" * 60
    state.mkdir(parents=True)
    state.chmod(0o700)
    assert len(str(state)) > 300
    assert ask(str(state), "echo") == {"arguments": {}}


def test_other_users_are_refused(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_may_command", lambda uid: False)
    with pytest.raises(ControlError, match="not permitted") as caught:
        ask(state, "echo")
    assert caught.value.errno == errno.EPERM


@pytest.mark.parametrize(
    ("uid", "own", "allowed"), [(0, 1000, True), (1000, 1000, True), (1001, 1000, False), (1000, 0, False)]
)
def test_root_and_the_owner_may_command(
    uid: int, own: int, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: own)
    assert server_module._may_command(uid) is allowed


def test_missing_and_dead_daemons_are_told_apart(state: str) -> None:
    with pytest.raises(ControlError, match="no daemon listens"):
        control.call_socket(state, "echo")
    with pytest.raises(ControlError, match="no daemon listens"):
        control.call_socket(state + "/gone", "echo")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.path.join(state, "control"))
    with pytest.raises(ControlError, match="is dead") as caught:
        control.call_socket(state, "echo")
    assert caught.value.errno == errno.ECONNREFUSED


# -- finding the daemon of a mount ------------------------------------------------------------------


def pretend_mount(monkeypatch: pytest.MonkeyPatch, mountpoint: Path | str) -> None:
    mount = control.Mount(str(mountpoint), control.FSTYPE, "/r", "rw", "0:99")
    monkeypatch.setattr(client, "mount_of", lambda path: mount)


def test_call_finds_the_daemon_through_stats(
    state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".stats").mkdir()
    (tmp_path / ".stats" / "config.json").write_text(json.dumps({"state_dir": state, "pid": 7}))
    pretend_mount(monkeypatch, tmp_path)
    assert control.locate("x").pid == 7
    answer = serving(state, lambda: control.call(str(tmp_path), "echo", {"a": 1}))
    assert answer == {"arguments": {"a": 1}}


def test_a_place_without_caiafs_is_said(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="not in a caiafs mount"):
        control.locate(str(tmp_path))
    with pytest.raises(ControlError, match="does not exist"):
        control.locate(str(tmp_path / "gone"))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOTCONN, r"daemon of /m m is dead.*caiafs umount '/m m'.*fusermount3 -u '/m m'"),
        (errno.ECONNABORTED, "is dead"),
        (errno.EACCES, "allow_other"),
        (errno.ENOENT, "cannot read"),
    ],
)
def test_unreadable_mounts_name_the_way_out(code: int, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    pretend_mount(monkeypatch, "/m m")
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(ControlError, match=message):
        control.locate("/m m")


def test_a_mount_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".stats").mkdir()
    os.mkfifo(tmp_path / ".stats" / "config.json")
    pretend_mount(monkeypatch, tmp_path)
    with pytest.raises(ControlError, match="does not answer") as caught:
        control.locate(str(tmp_path), timeout=0.05)
    assert caught.value.errno == errno.ETIMEDOUT
    with open(tmp_path / ".stats" / "config.json", "w") as release_the_reader:
        release_the_reader.write("{}")


def test_mount_table_decodes_names_and_finds_the_innermost(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_bytes(
        b"27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
        b"90 27 0:55 / /a\\040b rw,nosuid shared:3 master:1 - fuse.caiafs /srv/r\xff.git rw,user_id=0\n"
    )
    root, caia = mounts.mount_table(str(table))
    assert (root.mountpoint, root.fstype, root.is_caiafs) == ("/", "ext4", False)
    assert (caia.mountpoint, caia.is_caiafs, caia.device) == ("/a b", True, "0:55")
    assert os.fsencode(caia.source) == b"/srv/r\xff.git"


def test_mount_of_prefers_the_innermost_and_the_topmost(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    deep = str(tmp_path / "a b")
    places = [("/", "root"), (deep, "under"), (deep, "over"), (deep + "more", "beside")]
    table = tmp_path / "mountinfo"
    table.write_text(
        "".join(
            f"{number} 1 0:1 / {place.replace(' ', chr(92) + '040')} rw - x {source} rw\n"
            for number, (place, source) in enumerate(places)
        )
    )
    monkeypatch.setattr(mounts, "TABLE", str(table))
    for path, source in ((deep, "over"), (deep + "/x/y", "over"), (deep + "more", "beside"), ("/", "root")):
        found = mounts.mount_of(path)
        assert found is not None
        assert found.source == source


def test_the_client_does_not_load_trio() -> None:
    code = "import sys, caiafs.control; sys.exit('trio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
