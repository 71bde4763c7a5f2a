"""Options of the demo: ports and engines."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import yaml

from warmroute.errors import ConfigurationError
from warmroute.standalone.ports import free_range, is_free, require_free
from warmroute.standalone.proxy_config import ProxyConfig
from warmroute_lab.simulator.profile import DEFAULT_PROFILE, profile_named

HOST = "127.0.0.1"
PORT_FLAGS = {
    "port": "--port",
    "plain_port": "--plain-port",
    "admin_port": "--admin-port",
    "epp_port": "--epp-port",
    "epp_health_port": "--epp-health-port",
    "metrics_port": "--metrics-port",
    "debug_port": "--debug-port",
}
"""Flags of the single ports, by field of :class:`DemoOptions`."""
ALL_PORT_FLAGS = PORT_FLAGS | {"pod_port": "--pod-port"}
"""Those, and that of the engines' first port."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """Ports (0: any free one) and engines. Raises ConfigurationError for impossible values."""

    host: str = HOST
    """Address of Envoy's two listeners."""
    port: int = 8081
    """Envoy's listener with the picker."""
    plain_port: int = 8080
    """Envoy's listener without the picker: least requests over the same engines."""
    admin_port: int = 9901
    """Envoy's admin page."""
    epp_port: int = 9002
    epp_health_port: int = 9003
    metrics_port: int = 9090
    debug_port: int = 9091
    """The picker's debug pages."""
    pods: int = 5
    pod_port: int = 8000
    """The first engine's port; the others follow."""
    profile: str = DEFAULT_PROFILE
    time_scale: float = 1.0
    """Speed of the simulated engines relative to real ones."""
    movable: frozenset[str] = frozenset()
    """Fields of ports that the user has not chosen: where one is taken, a free one replaces it."""

    def __post_init__(self) -> None:
        profile_named(self.profile)
        if self.pods < 1:
            raise ConfigurationError("--pods must be at least 1")
        if not 0 < self.time_scale < math.inf:
            raise ConfigurationError(f"--time-scale must be a number above 0 (given: {self.time_scale})")

    def settled(self) -> DemoOptions:
        """The options with a free port in place of every 0, and of every movable port that is taken.

        Raises ConfigurationError if another port is taken, or one is given twice.
        """
        taken: dict[str, Any] = {name: 0 for name in self.movable if self._is_taken(name)}
        if taken:
            return replace(self, movable=frozenset(), **taken).settled()
        for name, flag in PORT_FLAGS.items():
            require_free(self._host(name), getattr(self, name), flag)
        missing = [name for name in PORT_FLAGS if getattr(self, name) == 0]
        free = free_range(len(missing) + self.pods)
        first = self.pod_port or free + len(missing)
        for i in range(self.pods):
            require_free(HOST, first + i, f"engine {i} (--pod-port)")
        found: dict[str, Any] = {name: free + i for i, name in enumerate(missing)}
        settled = replace(self, pod_port=first, **found)
        ports = [*(getattr(settled, name) for name in PORT_FLAGS), *range(first, first + self.pods)]
        if twice := [port for port in ports if ports.count(port) > 1]:
            raise ConfigurationError(f"port {twice[0]} is given twice")
        return settled

    def _is_taken(self, name: str) -> bool:
        """Whether the field's port, or one of the engines', is in use or chosen for something else."""
        chosen = {port for other in ALL_PORT_FLAGS.keys() - self.movable for port in self._ports(other)}
        return any(port in chosen or not is_free(self._host(name), port) for port in self._ports(name))

    def _ports(self, name: str) -> range:
        first = getattr(self, name)
        return range(first, first + (self.pods if name == "pod_port" else 1))

    def _host(self, name: str) -> str:
        return self.host if name in ("port", "plain_port") else HOST

    @property
    def targets(self) -> tuple[str, ...]:
        """``address:port`` of the engines."""
        return tuple(f"{HOST}:{self.pod_port + i}" for i in range(self.pods))

    @property
    def pod_names(self) -> tuple[str, ...]:
        """The engines' names in their responses."""
        return tuple(f"qwen-{i}" if self.pods > 1 else "qwen" for i in range(self.pods))

    def proxy_config(self) -> ProxyConfig:
        """Envoy's configuration in the demo."""
        return ProxyConfig(
            epp=(f"{HOST}:{self.epp_port}",),
            endpoints=self.targets,
            host=self.host,
            port=self.port,
            plain_port=self.plain_port,
            admin_port=self.admin_port,
            name_endpoint=True,
        )

    def endpoints_document(self) -> str:
        """The content of the picker's ``--endpoints-file``."""
        entries = [
            {"name": name, "namespace": "demo", "address": HOST, "port": self.pod_port + i}
            for i, name in enumerate(self.pod_names)
        ]
        return yaml.safe_dump({"endpoints": entries}, sort_keys=False)
