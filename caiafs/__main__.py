"""`python -m caiafs` is `caiafs`."""

from __future__ import annotations

import sys

from caiafs.cli import main

if __name__ == "__main__":
    sys.exit(main())
