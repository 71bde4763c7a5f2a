"""The engines of `warmroute up`: addresses and host names as given, port ranges that are searched, or an endpoints file."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import yaml

from warmroute import http_client, yaml_file
from warmroute.discovery import file as endpoints_file
from warmroute.errors import ConfigurationError
from warmroute.pool.endpoint import ENGINE_LABELS, canonical_target
from warmroute.standalone.engine_probe import probe_kinds, probe_models

MOST_ADDRESSES = 64
"""Addresses of one host name that are used."""
MOST_PORTS = 1024
"""Ports of all ranges together."""


@dataclass(frozen=True, slots=True)
class Target:
    """One engine, or one host name behind which there may be several."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Target:
        """``http://HOST:PORT`` or ``HOST:PORT``, IPv6 in brackets. Raises ConfigurationError."""
        url = text if "://" in text else f"http://{text}"
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise ConfigurationError(f"{text!r} is not the address of an engine: {error}") from error
        if parts.scheme != "http":
            raise ConfigurationError(f"{text!r}: engines are reached by http:// only")
        more = parts.query or parts.fragment or parts.path not in ("", "/", "/v1", "/v1/")
        if not host or parts.username is not None or more:
            raise ConfigurationError(f"{text!r} is not the address of an engine: http://HOST:PORT is")
        if not port:
            raise ConfigurationError(f"{text!r} names no port; vLLM's default is 8000")
        return cls(host, port)

    @property
    def name(self) -> str:
        """As in ``HOST:PORT``."""
        return canonical_target(self.host, self.port)


@dataclass(frozen=True, slots=True)
class PortRange:
    """Ports of one host, of which those that answer like an engine count."""

    host: str
    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> PortRange:
        """``HOST:FROM-TO``. Raises ConfigurationError."""
        match = re.fullmatch(r"(?:http://)?\[?([^\[\]/]+?)\]?:(\d{1,5})-(\d{1,5})", text)
        if match is None:
            raise ConfigurationError(f"{text!r} is not a range of ports: --discover HOST:FROM-TO")
        first, last = int(match[2]), int(match[3])
        if not 1 <= first <= last <= 65535:
            raise ConfigurationError(f"{text!r}: the ports must rise and be from 1 to 65535")
        return cls(match[1], first, last)

    def targets(self) -> Sequence[Target]:
        """One for each port."""
        return [Target(self.host, port) for port in range(self.first, self.last + 1)]


class Engine(NamedTuple):
    """One engine with its address."""

    name: str
    address: str
    port: int
    kind: str = ""
    """Its type as :data:`~warmroute.engines.dialects.DIALECTS` names it; empty if it is not known (yet)."""

    @property
    def target(self) -> str:
        """``address:port`` as Envoy wants it."""
        return canonical_target(self.address, self.port)


@dataclass(slots=True)
class EngineList:
    """The engines as they are now: :meth:`look` resolves names, searches ranges and reads the file again.

    Raises ConfigurationError if the lists exclude each other, or if the file cannot be used.
    """

    targets: Sequence[Target] = ()
    ranges: Sequence[PortRange] = ()
    file: Path | None = None
    _addresses: dict[str, list[str]] = field(default_factory=dict)
    """The last known addresses by host name: a name server that fails for a while changes nothing."""
    _found: dict[Target, None] = field(default_factory=dict)
    """Targets of the ranges that have answered once; the picker notices when they stop."""
    _kinds: dict[str, str] = field(default_factory=dict)
    """Types by target, of the engines that have shown a metrics page."""

    def __post_init__(self) -> None:
        if self.file is not None and (self.targets or self.ranges):
            raise ConfigurationError("engines come from --endpoints-file or from the command line, not from both")
        if self.file is None and not self.targets and not self.ranges:
            raise ConfigurationError(
                "name the engines: warmroute up http://10.0.0.7:8000 http://10.0.0.8:8000, --discover HOST:FROM-TO or "
                "--endpoints-file FILE"
            )
        if self.file is not None:
            _listed(self.file)  # before any port is tried
        if sum(len(ports.targets()) for ports in self.ranges) > MOST_PORTS:
            raise ConfigurationError(f"--discover searches at most {MOST_PORTS} ports")

    async def look(self) -> list[Engine]:
        """The engines now. Raises ConfigurationError for a file that cannot be used, and for a host name that has never had
        an address."""
        if self.file is not None:
            return await asyncio.to_thread(_listed, self.file)
        for ports in self.ranges:
            await self._search(ports)
        engines: dict[str, Engine] = {}
        for target in (*self.targets, *self._found):
            addresses = await self._resolve(target.host)
            for address in addresses:
                name = target.name if len(addresses) == 1 else f"{target.name} at {address}"
                engine = Engine(name, address, target.port)
                engines.setdefault(engine.target, engine)
        await self._recognise([target for target in engines if target not in self._kinds])
        return [engine._replace(kind=self._kinds.get(target, "")) for target, engine in engines.items()]

    async def _recognise(self, targets: Sequence[str]) -> None:
        """Ask engines for their metrics page: the names on it show the type."""
        for target, kind in zip(targets, await probe_kinds(targets), strict=True):
            if kind is not None:
                self._kinds[target] = kind

    async def _resolve(self, host: str) -> list[str]:
        try:
            return [str(ip_address(host))]
        except ValueError:
            pass
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            if host in self._addresses:
                return self._addresses[host]
            raise ConfigurationError(f"the host name {host!r} has no address: {_why(error)}") from error
        by_family: dict[int, dict[str, None]] = {}
        for family, _, _, _, address in found:
            by_family.setdefault(family, {})[str(address[0])] = None
        # Both families lead to the same engines: one of them is enough.
        addresses = sorted(by_family.get(socket.AF_INET) or by_family.get(socket.AF_INET6) or ())
        self._addresses[host] = addresses[:MOST_ADDRESSES]
        return self._addresses[host]

    async def _search(self, ports: PortRange) -> None:
        unknown = [target for target in ports.targets() if target not in self._found]
        (address, *_) = await self._resolve(ports.host)
        answers = await probe_models([canonical_target(address, target.port) for target in unknown])
        for target, answer in zip(unknown, answers, strict=True):
            if not answer.problem:
                self._found[target] = None


def document(engines: Sequence[Engine]) -> str:
    """The content of an endpoints file (`warmroute serve --endpoints-file`)."""
    entries: list[dict[str, Any]] = []
    for name, address, port, kind in engines:
        labels = {"labels": {ENGINE_LABELS[0]: kind}} if kind else {}
        entries.append({"name": name, "address": address, "port": port} | labels)
    return yaml.safe_dump({"endpoints": entries}, sort_keys=False, width=120)


def _listed(path: Path) -> list[Engine]:
    file = endpoints_file.parse_content(yaml_file.read(path, "endpoints file"), path)
    return [Engine(spec.name, spec.address, spec.port) for spec in file.for_clients()]


def _why(error: Exception) -> str:
    return http_client.reason(error) if isinstance(error, OSError) else str(error)
