"""The command line that runs this program again."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path


def program() -> str:
    """``warmroute`` if that is the running program; otherwise its path, or the interpreter with ``-m warmroute``. Quoted."""
    running = Path(sys.argv[0])
    if running.name != "warmroute" or not running.is_file():
        return f"{shlex.quote(sys.executable)} -m warmroute"
    on_path = shutil.which("warmroute")
    if on_path is not None and Path(on_path).resolve() == running.resolve():
        return "warmroute"
    return shlex.quote(str(running))
