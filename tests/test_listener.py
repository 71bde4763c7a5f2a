"""Listening sockets: an error names the flag and the system's reason."""

from __future__ import annotations

import socket

import pytest

from warmroute.errors import ConfigurationError
from warmroute.listener import listen

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("host", "where"),
    [("203.0.113.1", "203.0.113.1, port 0"), ("no-such-host.invalid", "no-such-host.invalid, port 0")],
)
def test_an_address_that_is_not_ours_is_not_called_in_use(host: str, where: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"cannot listen on {where} \(--grpc-port\): ") as caught:
        listen(host, 0, "--grpc-port")
    assert "in use" not in str(caught.value)


@pytest.mark.parametrize("host", ["", "127.0.0.1"])
def test_a_port_in_use_is_an_error(host: str) -> None:
    with listen(host, 0, "--first") as first:
        port = first.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"port {port} \(--second\): Address already in use"):
            listen(host, port, "--second")


def test_without_ipv6_all_interfaces_are_those_of_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    create = socket.create_server

    def without_ipv6(address: tuple[str, int], **options: object) -> socket.socket:
        if options["family"] == socket.AF_INET6:
            raise ValueError("dualstack_ipv6 not supported on this platform")
        return create(address, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "create_server", without_ipv6)
    with listen("", 0, "--port") as listener:
        assert listener.getsockname()[0] == "0.0.0.0"
