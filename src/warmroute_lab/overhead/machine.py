"""CPU time and resident memory of a process, and the description of this machine."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path


def cpu_seconds(pid: int) -> float:
    """CPU time of a process with all its threads. Linux only: the clock id is that of ``clock_getcpuclockid(3)``."""
    return time.clock_gettime(~pid << 3 | 2)


def resident_bytes(pid: int) -> int:
    """Resident memory of a process. Linux only."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def machine() -> str:
    """CPU, kernel and Python version, in one line."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (
        f"{os.cpu_count()} x {names[0] if names else platform.machine()}, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}"
    )
