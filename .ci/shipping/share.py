"""Everything that is installed beside the code, as one tree: `python -m shipping.share FOLDER` writes it.

    share/man                        manual pages, made from docs/
    share/bash-completion, zsh, fish completions, made from the parser
    share/doc/caiafs                 the documentation, and an example of a settings file

The wheel carries it (setup.py), and so does the Debian package (.ci/shipping/deb.py).
"""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from caiafs.cli.completion import render as completion
from caiafs.config.example import render as example
from shipping.manual import ROOT, pages

COMPLETIONS = {
    "bash": "bash-completion/completions/caiafs",
    "zsh": "zsh/site-functions/_caiafs",
    "fish": "fish/vendor_completions.d/caiafs.fish",
}


def moment() -> datetime:
    """When this is built: SOURCE_DATE_EPOCH, so that a build can be repeated to the byte, or now."""
    stamp = os.environ.get("SOURCE_DATE_EPOCH")
    return datetime.fromtimestamp(int(stamp), UTC) if stamp else datetime.now(UTC)


def files() -> dict[str, str]:
    """Every file below share/, with its contents."""
    tree = {f"man/{name}": text for name, text in pages(moment()).items()}
    tree |= {place: completion(shell) for shell, place in COMPLETIONS.items()}
    tree["doc/caiafs/examples/caiafs.toml"] = example()
    for name in ("README.md", "CHANGELOG.md", "LICENSE"):
        tree[f"doc/caiafs/{name}"] = (ROOT / name).read_text()
    for page in sorted((ROOT / "docs").rglob("*")):
        if page.suffix in (".md", ".yml", ".json"):  # with alert rules and a dashboard for the metrics
            tree[f"doc/caiafs/{page.relative_to(ROOT)}"] = page.read_text()
    return tree


def write(target: Path) -> list[Path]:
    """Write the tree below *target*/share; gives the files."""
    written = []
    for name, text in files().items():
        path = target / "share" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        written.append(path)
    return written


if __name__ == "__main__":
    for written in write(Path(sys.argv[1])):
        print(written)
