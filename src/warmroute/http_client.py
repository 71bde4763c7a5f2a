"""One HTTP/1.1 request at a time, for commands and for the standalone Envoy: blocking, bounded, without proxies."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from typing import NamedTuple
from urllib.parse import urlsplit

MOST_BYTES = 16 << 20
"""Bytes of an answer that are read."""


class Answer(NamedTuple):
    """An HTTP response."""

    status: int
    body: bytes


def exchange(
    url: str,
    *,
    method: str = "GET",
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    seconds: float = 30.0,
    most_bytes: int = MOST_BYTES,
) -> Answer:
    """The answer to one request. ``seconds`` is the longest time between two reads of it.

    Raises OSError without an answer (:func:`reason` puts it into words), and ValueError if ``url`` is not an ``http://``
    URL. A proxy of the environment is not used: it does not know this machine's ports.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"{url!r} is not an http:// URL")
    connection = HTTPConnection(parts.hostname, parts.port or 80, timeout=seconds)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    with closing(connection):
        try:
            connection.request(method, target, body, dict(headers or {}))
            answer = connection.getresponse()
            return Answer(answer.status, answer.read(most_bytes))
        except HTTPException as error:
            raise OSError(f"no HTTP answer ({type(error).__name__})") from error
        except UnicodeError as error:  # a host name that IDNA cannot encode
            raise OSError(str(error)) from error


def reason(error: OSError) -> str:
    """Why an exchange failed, in a few words: the system's text without its number."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return error.strerror or str(error)
