"""The options of `warmroute up`."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path

from warmroute.errors import ConfigurationError
from warmroute.routing import strategies
from warmroute.settings.settings import Settings
from warmroute.settings.sources import load, variable_of
from warmroute.standalone.picker_process import PickerPorts
from warmroute.standalone.ports import free_port, free_range, require_address, require_free
from warmroute.standalone.proxy_config import ProxyConfig

PORT = 8081
METRICS_PORT = 9090
DEBUG_PORT = 9091
STRATEGY = variable_of("routing_strategy")


@dataclass(frozen=True, slots=True, kw_only=True)
class UpOptions:
    """Where `warmroute up` listens and what it logs. Port 0 is any free port; a port of None is the usual one if that is
    free."""

    host: str = "127.0.0.1"
    """Address for requests; 0.0.0.0 lets other machines in."""
    port: int = PORT
    """Port for requests, through the picker."""
    plain_port: int | None = None
    """Port that balances by least requests, without the picker; None: no such port."""
    debug_host: str = "127.0.0.1"
    debug_port: int | None = None
    metrics_port: int | None = None
    access_log: str = ""
    """Envoy's access log, a file; empty: none."""
    strategy: str | None = None
    """None: as the environment says, else PREFIX_CACHE."""
    pickers: int = 1
    """Endpoint pickers; several share their state."""
    drain_timeout: float = 30.0
    """Longest wait for requests in flight when it is stopped, in seconds."""

    def picker_environ(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The pickers' environment: ``environ`` with the strategy."""
        strategy = {} if self.strategy is None else {STRATEGY: self.strategy}
        return {STRATEGY: "PREFIX_CACHE"} | dict(environ) | strategy

    def settled(self) -> UpOptions:
        """The options with a number for every port. Raises ConfigurationError for an address that cannot be listened on."""
        host, debug_host = listening_address(self.host, "--host"), listening_address(self.debug_host, "--debug-host")
        directory = Path(self.access_log).parent
        if not directory.is_dir():
            raise ConfigurationError(f"--access-log {self.access_log}: there is no directory {directory}")
        if self.access_log and Path(self.access_log).is_dir():
            raise ConfigurationError(f"--access-log {self.access_log} is a directory: name a file")
        require_address(host, "--host")
        require_address(debug_host, "--debug-host")
        ports = _Ports()
        return replace(
            self,
            host=host,
            debug_host=debug_host,
            port=ports.given(self.port, host, "--port"),
            plain_port=None if self.plain_port is None else ports.given(self.plain_port, host, "--plain-port"),
            debug_port=ports.settled(self.debug_port, DEBUG_PORT, debug_host, "--debug-port"),
            metrics_port=ports.settled(self.metrics_port, METRICS_PORT, "127.0.0.1", "--metrics-port"),
        )

    def picker_ports(self) -> tuple[PickerPorts, ...]:
        """The pickers' ports; the options are settled. The first picker has the given metrics and debug ports."""
        assert self.metrics_port is not None
        assert self.debug_port is not None
        first = free_range(2)
        ports = [PickerPorts(first, first + 1, self.metrics_port, self.debug_port)]
        for _ in range(self.pickers - 1):
            first = free_range(4)
            ports.append(PickerPorts(first, first + 1, first + 2, first + 3))
        return tuple(ports)

    def proxy_config(
        self, pickers: Sequence[PickerPorts], endpoints_file: Path, *, response_headers: bool = False
    ) -> ProxyConfig:
        """Envoy's options; the options are settled. ``response_headers``: the pickers observe responses."""
        return ProxyConfig(
            epp=tuple(f"127.0.0.1:{picker.grpc}" for picker in pickers),
            endpoints_file=endpoints_file,
            host=self.host,
            port=self.port,
            plain_port=self.plain_port,
            name_endpoint=True,
            access_log=self.access_log,
            response_headers=response_headers,
            epp_health_check=len(pickers) > 1,  # a picker alone has no other one to send to
        )


def picker_settings(environ: Mapping[str, str]) -> Settings:
    """What a picker in this environment is set to. Raises ConfigurationError, also if it would not find its strategies."""
    settings = load({}, environ=environ)
    strategies.find(settings.routing_strategy, rng=random.Random())
    strategies.require_name(settings.holdout_strategy, variable_of("holdout_strategy"))
    return settings


def listening_address(host: str, flag: str) -> str:
    """``host`` as an IP address. Raises ConfigurationError for a name: Envoy binds addresses only."""
    try:
        return str(ip_address("127.0.0.1" if host == "localhost" else host.strip("[]")))
    except ValueError:
        raise ConfigurationError(
            f"{flag} {host!r} is not an IP address: 127.0.0.1 is this machine only, 0.0.0.0 every network"
        ) from None


@dataclass(slots=True)
class _Ports:
    """The ports that are settled so far."""

    flags: dict[tuple[str, int], str] = field(default_factory=dict)
    """Flags by address and port."""

    def given(self, port: int, host: str, flag: str) -> int:
        """The port, or a free one in place of 0. Raises ConfigurationError if it is in use or another flag's."""
        for (other, number), taken in self.flags.items():
            if number == port and (other == host or any(ip_address(each).is_unspecified for each in (other, host))):
                raise ConfigurationError(f"{taken} and {flag} are the same: {port}")
        require_free(host, port, flag)
        port = port or free_port(host)
        self.flags[host, port] = flag
        return port

    def settled(self, port: int | None, usual: int, host: str, flag: str) -> int:
        """As :meth:`given`; for None the usual port, or a free one where that is in use."""
        if port is not None:
            return self.given(port, host, flag)
        try:
            return self.given(usual, host, flag)
        except ConfigurationError:
            return self.given(0, host, flag)
