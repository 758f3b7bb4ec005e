"""What git takes into a tree: names, kinds and two special contents. Pure functions.

`git fsck --strict`, and servers with transfer.fsckObjects, refuse trees in which a name could
be read as `.git` by a filesystem that ignores case (macOS, Windows), ignores some Unicode
characters (HFS+), or drops trailing dots and spaces and has short names (NTFS). Names that
fail here are kept on the side ref instead. When in doubt the answer is False: too careful
costs a side record, too bold costs a repository that cannot be pushed.

The rules follow git's documented behaviour (git-fsck(1), messages hasDotgit, gitmodules*,
gitattributes*, *Symlink) and tests compare them with the real command.
"""

from __future__ import annotations

import re
import stat

CONTENT_CHECK_LIMIT = 1 << 20  # special files beyond this are not even looked into
_NAME_LIMIT = 4096  # fsck warns beyond (largePathname)
_ATTRIBUTES_LINE_LIMIT = 2000  # git refuses 2048

# Characters that HFS+ ignores when it compares names.
_HFS_IGNORED = dict.fromkeys(
    [*range(0x200C, 0x2010), *range(0x202A, 0x202F), *range(0x206A, 0x2070), 0xFEFF], None
)


def _hfs_form(name: bytes) -> str:
    """*name* as HFS+ would compare it, up to the first byte that is not UTF-8 (where git stops, too)."""
    if name.isascii():
        return name.decode("ascii").lower()  # most are: a tenth of the time
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError as error:
        text = name[: error.start].decode("utf-8")
    text = re.split("[\ufffe\uffff]", text, maxsplit=1)[0]
    return "".join(chr(ord(c) + 32) if "A" <= c <= "Z" else c for c in text.translate(_HFS_IGNORED))


def _ntfs_pattern(long_name: str, short_prefix: str) -> re.Pattern[bytes]:
    """Every form in which NTFS may open .*long_name*: itself, its short name, its hashed short name."""
    short = [rf"{long_name[:6]}~[1-4]"]
    short += [re.escape(short_prefix[:n]) + rf"~[1-9][0-9]{{{6 - n}}}" for n in range(7)]
    pattern = rf"(?:\.{long_name}|{'|'.join(short)})[ .]*(?::|\Z)"
    return re.compile(pattern.encode(), re.IGNORECASE | re.DOTALL)


_PLAIN = re.compile(rb"[A-Za-z0-9_-][A-Za-z0-9_.,+=@-]{0,254}")
"""Names that nobody can take for another: in ASCII, every form of `.git` and its like begins with a dot or
has a tilde. Most names are such, and a commit of many files asks three times for each."""
_NTFS_DOTGIT = re.compile(rb"(?:\.git|git~1)[ .]*(?::|\Z)", re.IGNORECASE | re.DOTALL)
_MODULES = _ntfs_pattern("gitmodules", "gi7eba")
_ATTRIBUTES = _ntfs_pattern("gitattributes", "gi7d29")
_IGNORE = _ntfs_pattern("gitignore", "gi250a")
_MAILMAP = _ntfs_pattern("mailmap", "maba30")


def storable_name(name: bytes) -> bool:
    """False for every name that git refuses, or warns about, whatever is stored under it."""
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name or len(name) > _NAME_LIMIT:
        return False
    if _NTFS_DOTGIT.match(name) or (
        b"\\" in name and any(_NTFS_DOTGIT.match(part) for part in name.split(b"\\"))
    ):
        return False
    return _hfs_form(name) != ".git"


def _is_modules(name: bytes) -> bool:
    starts = [0]
    if b"\\" in name:
        starts += [match.end() for match in re.finditer(rb"\\", name)]
    return any(_MODULES.match(name, start) for start in starts) or _hfs_form(name) == ".gitmodules"


def _is_attributes(name: bytes) -> bool:
    return _ATTRIBUTES.match(name) is not None or _hfs_form(name) == ".gitattributes"


def _is_ignore_or_mailmap(name: bytes) -> bool:
    if _IGNORE.match(name) or _MAILMAP.match(name):
        return True
    return _hfs_form(name) in (".gitignore", ".mailmap")


def storable_entry(name: bytes, mode: int) -> bool:
    """Whether git takes an entry *name* of kind *mode* (blob contents apart, see storable_content)."""
    if _PLAIN.fullmatch(name):
        return True
    if not storable_name(name):
        return False
    if stat.S_ISREG(mode):
        return True
    if _is_modules(name) or _is_attributes(name):
        return False
    return not (stat.S_ISLNK(mode) and _is_ignore_or_mailmap(name))


def needs_content_check(name: bytes) -> bool:
    """Whether git looks into a file of this name: ask storable_content before committing one."""
    return not _PLAIN.fullmatch(name) and (_is_modules(name) or _is_attributes(name))


def storable_content(name: bytes, data: bytes) -> bool:
    """Whether git takes *data* as the content of *name*; False when in doubt, or over CONTENT_CHECK_LIMIT."""
    if not needs_content_check(name):
        return True
    if len(data) > CONTENT_CHECK_LIMIT:
        return False
    if _is_attributes(name) and any(len(line) >= _ATTRIBUTES_LINE_LIMIT for line in data.split(b"\n")):
        return False
    return not _is_modules(name) or _modules_are_fine(data)


# --- .gitmodules ------------------------------------------------------------------------------------

_SECTION = re.compile(rb'\[([A-Za-z0-9-]+)(?:[ \t]+"((?:[^"\\\n]|\\[^\n])*)")?\]')
_KEY = re.compile(rb"([A-Za-z][A-Za-z0-9-]*)[ \t]*(?:=[ \t]*|(?=\n|\Z))")
_BLANK = re.compile(rb"[ \t\n]*(?:[#;][^\n]*)?")
_HTTP = re.compile(
    rb"(?:https?|ftps?)://(?:[A-Za-z0-9._~-]+(?::[A-Za-z0-9._~-]*)?@)?[A-Za-z0-9.-]+(?::[0-9]+)?(?:/.*)?"
)
_ESCAPES = {b'"': b'"', b"\\": b"\\", b"n": b"\n", b"t": b"\t", b"b": b"\b"}


def _modules_are_fine(data: bytes) -> bool:
    """Whether *data* parses as a git config without doubt, and sets nothing that git calls dangerous."""
    if b"\0" in data or b"\r" in data:
        return False
    position = 0
    section: tuple[bytes, bytes | None] | None = None
    while True:
        blank = _BLANK.match(data, position)
        position = blank.end() if blank else position
        if position >= len(data):
            return True
        if data[position : position + 1] == b"\n":
            continue
        header = _SECTION.match(data, position)
        if header:
            name = header.group(2)
            if name is not None:
                name = re.sub(rb"\\(.)", rb"\1", name, flags=re.DOTALL)
            section = header.group(1).lower(), name
            if section[0] == b"submodule" and name is not None and not _module_name_is_fine(name):
                return False
            position = header.end()
            continue
        key = _KEY.match(data, position)
        if key is None or section is None:
            return False
        value: bytes | None = None
        position = key.end()
        if key.group().rstrip(b" \t").endswith(b"="):
            parsed = _parse_value(data, position)
            if parsed is None:
                return False
            value, position = parsed
        in_module = section[0] == b"submodule" and section[1] is not None
        if in_module and not _module_value_is_fine(key.group(1).lower(), value):
            return False


def _parse_value(data: bytes, position: int) -> tuple[bytes, int] | None:
    """A config value and where its line ends; None when it is malformed."""
    out = bytearray()
    keep = 0  # length up to which trailing blanks are part of the value
    quoted = False
    while position < len(data):
        char = data[position : position + 1]
        position += 1
        if char == b"\n":
            break
        if char == b"\\":
            follow = data[position : position + 1]
            position += 1
            if follow == b"\n":
                continue
            if follow not in _ESCAPES:
                return None
            out += _ESCAPES[follow]
            keep = len(out)
        elif char == b'"':
            quoted = not quoted
            keep = len(out)
        elif not quoted and char in b"#;":
            end = data.find(b"\n", position)
            position = len(data) if end < 0 else end + 1
            break
        else:
            out += char
            if quoted or char not in b" \t":
                keep = len(out)
    return None if quoted else (bytes(out[:keep]), position)


def _module_name_is_fine(name: bytes) -> bool:
    return name != b"" and b".." not in re.split(rb"[/\\]", name)


def _module_value_is_fine(key: bytes, value: bytes | None) -> bool:
    if value is None:
        return key not in (b"url", b"path", b"update")
    if key == b"url":
        return _module_url_is_fine(value)
    if key == b"path":
        return not value.startswith(b"-")
    if key == b"update":
        return not value.startswith(b"!")
    return True


def _module_url_is_fine(url: bytes) -> bool:
    lowered = url.lower()
    if not url or url.startswith(b"-") or b"::" in url or b"\n" in url or b"\\" in url:
        return False
    if b"%0a" in lowered or b"%00" in lowered or b"%0d" in lowered:
        return False
    if lowered.startswith((b"http:", b"https:", b"ftp:", b"ftps:")):
        return _HTTP.fullmatch(url) is not None
    if url.startswith((b"./", b"../")):
        rest = re.sub(rb"\A(?:\.{1,2}/)+", b"", url)
        return not rest.startswith((b":", b"/"))
    return True


def show(path: bytes) -> str:
    """A path for a person: as it is if it is plain UTF-8, else quoted as git quotes it."""
    try:
        text = path.decode("utf-8")
    except UnicodeDecodeError:
        text = ""
    if text and text.isprintable():
        return text
    quoted = "".join(
        chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03o}" for byte in path
    )
    return f'"{quoted}"'
