"""Become a program that Linux ends when its parent ends, however the parent ends.

Run as a script: ``python -I -S with_parent.py PARENT PROGRAM [ARGUMENT]...``. The process asks the kernel for SIGTERM at the
end of its parent, whose pid is PARENT, and then runs PROGRAM in its own place: the wish and the pid stay. It imports nothing
of Warmroute, so it takes a few milliseconds more than a bare start of Python.

The parent could ask in the child between fork and exec (``preexec_fn``), but that may deadlock in a parent with threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h
NOT_RUN = 127
"""Exit status where the program cannot be run, as in a shell."""


def main() -> None:
    """Does not return."""
    parent, *argv = sys.argv[1:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # it ended before the wish was known
        sys.exit(128 + signal.SIGTERM)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and the program would inherit that
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        print(f"{argv[0]} cannot be run: {error.strerror}", file=sys.stderr)  # noqa: T201 -- the child's log
        sys.exit(NOT_RUN)


if __name__ == "__main__":
    main()
