"""The settings of ``warmroute serve``.

:mod:`~warmroute.settings.settings` declares each setting once. :mod:`~warmroute.settings.sources` merges flags, environment
and file; :mod:`~warmroute.settings.flags` makes the command line's options, :mod:`~warmroute.settings.go_flags` accepts the
spellings of other pickers, and :mod:`~warmroute.settings.table` prints the table of the README.
"""

from warmroute.settings.settings import HOT_SETTINGS, Settings, extra_of
from warmroute.settings.sources import ENV_PREFIX, changed, load

__all__ = ["ENV_PREFIX", "HOT_SETTINGS", "Settings", "changed", "extra_of", "load"]
