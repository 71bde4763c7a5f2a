"""One request of a command, and peers that do not let it end."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from warmroute import http_client

pytestmark = pytest.mark.integration


@contextmanager
def peer(beginning: bytes, drop: bytes = b"") -> Iterator[str]:
    """A server that answers with ``beginning``, then sends ``drop`` again and again; yields its URL."""

    def serve() -> None:
        connection, _ = listener.accept()
        with closing(connection):
            connection.recv(1 << 16)
            try:
                connection.sendall(beginning)
                while drop:
                    time.sleep(0.02)
                    connection.sendall(drop)
            except OSError:
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        thread.join()


@pytest.mark.parametrize("ending", [b"", b"Connection: close\r\n"])
def test_an_answer(ending: bytes) -> None:
    with peer(b"HTTP/1.1 200 OK\r\n" + ending + b"Content-Length: 2\r\n\r\nok") as url:
        assert http_client.exchange(url) == http_client.Answer(200, b"ok")


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nX: ",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1000000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
    ],
)
def test_a_peer_that_sends_a_byte_now_and_then_has_no_more_time_than_one_that_is_silent(beginning: bytes) -> None:
    began = time.monotonic()
    with peer(beginning, b" ") as url, pytest.raises(TimeoutError):
        http_client.exchange(url, seconds=0.3)
    assert time.monotonic() - began < 5


def test_a_host_that_is_none_is_an_error_of_the_exchange() -> None:
    for host in ("a b", "a..b"):
        with pytest.raises(OSError, match=r"no HTTP answer|idna|not known"):
            http_client.exchange(f"http://{host}:9/")
