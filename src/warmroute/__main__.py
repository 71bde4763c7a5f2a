"""``python -m warmroute`` is the command ``warmroute``."""

from warmroute.cli import main

main()
