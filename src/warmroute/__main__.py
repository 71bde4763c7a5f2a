"""The command ``warmroute``, also as ``python -m warmroute``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line. Ctrl-C during its imports ends the process without a traceback, with exit code 130."""
    try:
        from warmroute.cli import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
