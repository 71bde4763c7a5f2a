"""Bearer tokens in files, bounded while they are read."""

from __future__ import annotations

import re
from pathlib import Path

from warmroute.errors import ConfigurationError

MOST_TOKEN_BYTES = 16 << 10
"""Bytes of a file. Tokens of Kubernetes' service accounts have about 1 kB."""

_TOKEN = re.compile(r"[!-~]+")


def read_token(path: Path) -> str:
    """The token in the file, without the white space around it. Raises ConfigurationError if there is none."""
    try:
        with path.open("rb") as file:
            content = file.read(MOST_TOKEN_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"the token file {path} cannot be read: {error.strerror}") from error
    token = content.decode("latin-1").strip()
    if len(content) > MOST_TOKEN_BYTES or not _TOKEN.fullmatch(token):
        raise ConfigurationError(f"the token file {path} holds no token")
    return token
