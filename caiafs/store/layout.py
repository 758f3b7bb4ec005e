"""What a repository is on disk: finding it, its settings, its work trees.

Used by Store when it opens a repository, and to tell which branches are checked out somewhere.
Follows gitrepository-layout(5); configuration is read by dulwich.
"""

from __future__ import annotations

import os

from dulwich.config import ConfigFile, StackedConfig

from caiafs.errors import RepositoryMissing, RepositoryUnsupported, StoreError
from caiafs.store.disk import fsync_dir
from caiafs.store.refs import valid_ref

_EXTENSIONS = {b"noop", b"preciousobjects", b"partialclone", b"worktreeconfig", b"relativeworktrees"}


_CRUD = bytes(range(33)) + b".,:;<>\"\\'"


class Layout:
    """An existing repository: its directories and settings."""

    def __init__(self, path: str) -> None:
        gitfile_at: str | None = None
        head_dir = path
        if os.path.isdir(path) and not _is_git_dir(path):
            head_dir = os.path.join(path, ".git")
        if os.path.isfile(head_dir):
            gitfile_at = os.path.dirname(head_dir)
            head_dir = _follow_gitfile(head_dir)
        if not _is_git_dir(head_dir):
            raise RepositoryMissing(
                f"there is no git repository at {path}; `caiafs mount -o init` creates a bare one, "
                f"or name the top of a work tree or its .git directory"
            )
        self.head_dir = head_dir  # of the work tree that was named
        self.git_dir = _common_dir(head_dir)
        self.config = _read_config(os.path.join(self.git_dir, "config"))
        self._refuse_unsupported()
        if self._flag(b"extensions", b"worktreeconfig"):
            overlay = os.path.join(self.git_dir, "config.worktree")
            if os.path.exists(overlay):
                extra = _read_config(overlay)
                for section in extra.sections():
                    for key, value in extra.items(section):
                        self.config.set(section, key, value)
        opened_through_link = gitfile_at if head_dir == self.git_dir else None
        self.work_tree = self._main_work_tree(opened_through_link)  # None: bare

    @property
    def logs_refs(self) -> bool:
        """Whether git would start a reflog for a branch here (core.logAllRefUpdates)."""
        try:
            value = self.config.get(b"core", b"logallrefupdates").lower()
        except KeyError:
            return self.work_tree is not None
        return value in (b"true", b"yes", b"on", b"1", b"always")

    def identity(self) -> bytes | None:
        """user.name and user.email as "Name <mail>", from this repository, the user or the machine; without
        what git leaves out of them."""
        stack = StackedConfig([self.config, *StackedConfig.default_backends()])
        try:
            name, mail = stack.get((b"user",), b"name"), stack.get((b"user",), b"email")
        except KeyError:
            return None
        name, mail = _without_crud(name), _without_crud(mail)
        return name + b" <" + mail + b">" if name and mail else None

    def _flag(self, section: bytes, key: bytes) -> bool:
        try:
            return self.config.get(section, key).lower() in (b"true", b"yes", b"on", b"1")
        except KeyError:
            return False

    def _refuse_unsupported(self) -> None:
        try:
            version = self.config.get(b"core", b"repositoryformatversion").strip()
        except KeyError:
            version = b"0"
        if version not in (b"0", b"1"):
            raise RepositoryUnsupported(
                f"{self.git_dir} is of git's repository format {version.decode(errors='replace')}; "
                f"caiafs knows 0 and 1"
            )
        try:
            extensions = {key.lower(): value.lower() for key, value in self.config.items((b"extensions",))}
        except KeyError:
            extensions = {}
        if extensions.get(b"objectformat", b"sha1") != b"sha1":
            raise RepositoryUnsupported(
                f"{self.git_dir} uses SHA-256 object names; caiafs needs a SHA-1 repository, git's default"
            )
        if extensions.get(b"refstorage", b"files") != b"files":
            raise RepositoryUnsupported(
                f"{self.git_dir} keeps refs as reftable; `git refs migrate --ref-format=files` converts it"
            )
        unknown = extensions.keys() - _EXTENSIONS - {b"objectformat", b"refstorage"}
        if version == b"1" and unknown:
            names = ", ".join(sorted(name.decode(errors="replace") for name in unknown))
            raise RepositoryUnsupported(f"{self.git_dir} uses extensions that caiafs does not know: {names}")

    def _main_work_tree(self, opened_at: str | None) -> str | None:
        try:
            bare = self.config.get(b"core", b"bare").lower() in (b"true", b"yes", b"on", b"1")
        except KeyError:
            bare = os.path.basename(self.git_dir) != ".git" and opened_at is None
        if bare:
            return None
        try:
            configured = os.fsdecode(self.config.get(b"core", b"worktree"))
            return os.path.normpath(os.path.join(self.git_dir, configured))
        except KeyError:
            pass
        if opened_at is not None:
            return opened_at
        return os.path.dirname(self.git_dir) if os.path.basename(self.git_dir) == ".git" else self.git_dir

    # --- branches in use

    def head_branch(self) -> bytes | None:
        """Short name of the branch HEAD points at, born or not; None when detached."""
        return _branch_in(os.path.join(self.head_dir, "HEAD"))

    def checked_out_at(self, branch: bytes) -> str | None:
        """The work tree that has *branch* checked out or is rebasing it."""
        if self.work_tree is not None and branch in _branches_used(self.git_dir):
            return self.work_tree
        worktrees = os.path.join(self.git_dir, "worktrees")
        try:
            names = sorted(os.listdir(worktrees))
        except (FileNotFoundError, NotADirectoryError):
            return None
        for name in names:
            admin = os.path.join(worktrees, name)
            link = _first_line(os.path.join(admin, "gitdir"))
            if link is None or branch not in _branches_used(admin):
                continue
            gitfile = os.path.normpath(os.path.join(admin, os.fsdecode(link)))
            # A work tree that was deleted without `git worktree remove` has nothing checked out any more,
            # unless it is locked: then it may be on a disk that is not there now.
            if os.path.exists(gitfile) or os.path.exists(os.path.join(admin, "locked")):
                return os.path.dirname(gitfile)
        return None


def create_bare(path: str, branch: bytes) -> None:
    """Create a bare repository at *path* (absent, or an empty directory), durably.

    HEAD comes last: what a crash leaves half made is no repository yet, and is completed next time.
    """
    files = {
        # Who pushes to a branch must not say how far its mount's journal is in git.
        "config": b"[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = true\n"
        b"[receive]\n\thideRefs = refs/caiafs\n",
        "description": b"Unnamed repository; edit this file 'description' to name the repository.\n",
        "info/exclude": b"# Patterns that git ignores in work trees of this repository.\n",
    }
    folders = ("info", "objects", "objects/info", "objects/pack", "refs", "refs/heads", "refs/tags")
    ours = {name.split("/")[0] for name in (*files, *folders)} | {"HEAD.lock"}
    if os.path.lexists(path) and not (os.path.isdir(path) and ours.issuperset(os.listdir(path))):
        raise StoreError(f"{path} is in use; a new repository needs a new or an empty directory")
    parents = []
    directory = path
    while not os.path.isdir(directory):
        directory = os.path.dirname(directory)
        parents.append(directory)
    for folder in folders:
        os.makedirs(os.path.join(path, folder), exist_ok=True)
    for name, content in files.items():
        _write_durably(os.path.join(path, name), content)
    for folder in folders:
        fsync_dir(os.path.join(path, folder))
    fsync_dir(path)  # a HEAD that is found after a power loss finds the rest beside it
    _write_durably(os.path.join(path, "HEAD.lock"), b"ref: refs/heads/" + branch + b"\n")
    os.rename(os.path.join(path, "HEAD.lock"), os.path.join(path, "HEAD"))
    fsync_dir(path)
    for directory in parents:
        fsync_dir(directory)


def _write_durably(path: str, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _without_crud(text: bytes) -> bytes:
    """What git writes into a commit of a name or an address (ident.c in git)."""
    return text.strip(_CRUD).translate(None, b"\n<>\0")


def _is_git_dir(path: str) -> bool:
    """HEAD and, here or in the common directory, objects and refs."""
    try:
        os.lstat(os.path.join(path, "HEAD"))
    except (FileNotFoundError, NotADirectoryError):
        return False  # a directory that may not be looked into is another matter, and raises
    try:
        common = _common_dir(path)
    except OSError:
        return False
    return os.path.isdir(os.path.join(common, "objects")) and os.path.isdir(os.path.join(common, "refs"))


def _common_dir(git_dir: str) -> str:
    link = _first_line(os.path.join(git_dir, "commondir"))
    return git_dir if link is None else os.path.normpath(os.path.join(git_dir, os.fsdecode(link)))


def _follow_gitfile(path: str) -> str:
    line = _first_line(path)
    if line is None or not line.startswith(b"gitdir: "):
        raise RepositoryMissing(f"{path} is neither a repository nor a file that names one (`gitdir: …`)")
    return os.path.normpath(os.path.join(os.path.dirname(path), os.fsdecode(line[8:])))


def _first_line(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.readline(8192).rstrip(b"\r\n")
    except (FileNotFoundError, NotADirectoryError):
        return None


def _branch_in(path: str) -> bytes | None:
    line = _first_line(path)
    if line is None or not line.startswith(b"ref:"):
        return None
    name = line[4:].strip()
    if not name.startswith(b"refs/heads/") or not valid_ref(name):  # `..` would be a path
        return None
    return name.removeprefix(b"refs/heads/")


def _branches_used(admin_dir: str) -> set[bytes]:
    """The branch a work tree is on, and the one it will return to after a rebase."""
    used = set()
    head = _branch_in(os.path.join(admin_dir, "HEAD"))
    if head is not None:
        used.add(head)
    for name in ("rebase-merge/head-name", "rebase-apply/head-name"):
        line = _first_line(os.path.join(admin_dir, name))
        if line is not None and line.startswith(b"refs/heads/"):
            used.add(line.removeprefix(b"refs/heads/"))
    return used


def _read_config(path: str) -> ConfigFile:
    try:
        return ConfigFile.from_path(path)
    except FileNotFoundError:
        return ConfigFile()
    except ValueError as error:
        raise StoreError(f"cannot read {path}: {error}") from error
