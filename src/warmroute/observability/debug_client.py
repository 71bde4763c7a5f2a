"""A client of a picker's debug port, for commands."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlencode, urlsplit

from warmroute.errors import WarmrouteError

DEFAULT_URL = "http://127.0.0.1:9091"
"""The debug port of a picker on this machine."""
SECONDS = 30.0
"""Longest time without a byte of the answer."""
MOST_BYTES = 16 << 20
"""Bytes of an answer that are read."""


class DebugPortError(WarmrouteError):
    """The debug port cannot be reached or answers with an error; the message says which."""


def ask(base_url: str, path: str, query: Mapping[str, str | int], *, body: bytes | None = None, **headers: str) -> Any:
    """The JSON that the debug port at ``base_url`` answers: GET, or POST if there is a ``body``.

    Raises DebugPortError.
    """
    base = urlsplit(base_url)
    if base.scheme != "http" or not base.hostname:
        raise DebugPortError(f"{base_url!r} is not a URL like {DEFAULT_URL}")
    # Not by a proxy of the environment: that does not know this machine's ports.
    try:
        connection = HTTPConnection(base.hostname, base.port or 80, timeout=SECONDS)
        with closing(connection):
            target = f"{base.path.rstrip('/')}{path}?{urlencode(query)}"
            method = "GET" if body is None else "POST"
            connection.request(method, target, body, {name.replace("_", "-"): text for name, text in headers.items()})
            answer = connection.getresponse()
            status, content = answer.status, json.loads(answer.read(MOST_BYTES))
    except (OSError, HTTPException, ValueError) as error:
        raise DebugPortError(
            f"no picker's debug port at {base_url} ({error}); in Kubernetes: kubectl port-forward POD 9091"
        ) from error
    if status != HTTPStatus.OK:
        reason = content.get("error", "") if isinstance(content, dict) else ""
        raise DebugPortError(f"{base_url} answers {status} {reason}")
    return content
