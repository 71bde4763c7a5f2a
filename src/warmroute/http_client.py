"""One HTTP/1.1 request at a time, for commands and for the standalone Envoy: blocking, bounded, without proxies."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from threading import Event, Timer
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
    """The answer to one request, which takes at most ``seconds`` to connect and ``seconds`` after that.

    Raises OSError without an answer (:func:`reason` puts it into words), and ValueError if ``url`` is not an ``http://``
    URL. A proxy of the environment is not used: it does not know this machine's ports.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"{url!r} is not an http:// URL")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        with closing(HTTPConnection(parts.hostname, parts.port or 80, timeout=seconds)) as connection:
            connection.connect()
            with _deadline(connection.sock, seconds):
                connection.request(method, target, body, dict(headers or {}))
                with closing(connection.getresponse()) as answer:
                    return Answer(answer.status, answer.read(most_bytes))
    except HTTPException as error:
        raise OSError(f"no HTTP answer ({type(error).__name__})") from error
    except UnicodeError as error:  # a host name that IDNA cannot encode
        raise OSError(str(error)) from error


@contextmanager
def _deadline(connection: socket.socket, seconds: float) -> Iterator[None]:
    """Raises TimeoutError if the block takes longer, whatever the peer sends: a socket's own timeout begins again with every
    byte."""
    late = Event()

    def end() -> None:
        late.set()
        with suppress(OSError):  # it has been closed
            connection.shutdown(socket.SHUT_RDWR)

    timer = Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (HTTPException, OSError) as error:
        if late.is_set():
            raise TimeoutError from error
        raise
    finally:
        timer.cancel()
    if late.is_set():  # what was read ends early
        raise TimeoutError


def reason(error: OSError) -> str:
    """Why an exchange failed, in a few words: the system's text without its number."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return error.strerror or str(error)
