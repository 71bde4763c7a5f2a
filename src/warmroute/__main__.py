"""The command ``warmroute``, also as ``python -m warmroute``."""

from __future__ import annotations

import os
import signal


def main() -> None:
    """Run the command line.

    Ctrl-C during its imports ends the process by the signal, as it does a program that handles none: no traceback, exit code
    130 in a shell. So does one that the command line does not handle, as before the command runs.
    """
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # not where SIGINT is ignored, as in a shell's background job
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from warmroute.cli import main as run

    try:
        signal.signal(signal.SIGINT, handler)
        run()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    main()
