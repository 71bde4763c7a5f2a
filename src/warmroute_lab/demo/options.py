"""Ports, engines and files of the demo."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import yaml

from warmroute.errors import ConfigurationError
from warmroute.standalone.ports import free_range, require_free
from warmroute.standalone.proxy_config import Picking, ProxyConfig
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
"""The flags of the ports that stand alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """Where everything listens (port 0: any free one) and what the engines are."""

    port: int = 8081
    """Envoy's listener that asks the picker."""
    plain_port: int = 8080
    """Envoy's listener that balances by least requests over the same engines."""
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
    """How much faster than real engines the simulated ones are."""

    def __post_init__(self) -> None:
        profile_named(self.profile)
        if self.pods < 1:
            raise ConfigurationError("--pods must be at least 1")
        if self.time_scale <= 0:
            raise ConfigurationError("--time-scale must be more than 0")

    def settled(self) -> DemoOptions:
        """The same with every port 0 replaced by a free one.

        Raises ConfigurationError if a wanted port is taken or wanted twice.
        """
        for name, flag in PORT_FLAGS.items():
            require_free(HOST, getattr(self, name), flag)
        missing = [name for name in PORT_FLAGS if getattr(self, name) == 0]
        free = free_range(len(missing) + self.pods)
        first = self.pod_port or free + len(missing)
        for i in range(self.pods):
            require_free(HOST, first + i, f"engine {i} (--pod-port)")
        found: dict[str, Any] = {name: free + i for i, name in enumerate(missing)}
        settled = replace(self, pod_port=first, **found)
        ports = [*(getattr(settled, name) for name in PORT_FLAGS), *range(first, first + self.pods)]
        if twice := [port for port in ports if ports.count(port) > 1]:
            raise ConfigurationError(f"port {twice[0]} is wanted twice")
        return settled

    @property
    def targets(self) -> tuple[str, ...]:
        """``address:port`` of the engines."""
        return tuple(f"{HOST}:{self.pod_port + i}" for i in range(self.pods))

    @property
    def pod_names(self) -> tuple[str, ...]:
        """The names by which the engines answer."""
        return tuple(f"qwen-{i}" if self.pods > 1 else "qwen" for i in range(self.pods))

    def proxy_config(self, picking: Picking = Picking.OVERRIDE_HOST) -> ProxyConfig:
        """What Envoy does in the demo."""
        return ProxyConfig(
            epp=(f"{HOST}:{self.epp_port}",),
            endpoints=self.targets,
            port=self.port,
            plain_port=self.plain_port,
            admin_port=self.admin_port,
            picking=picking,
        )

    def endpoints_document(self) -> str:
        """The picker's ``--endpoints-file``."""
        entries = [
            {"name": name, "namespace": "demo", "address": HOST, "port": self.pod_port + i}
            for i, name in enumerate(self.pod_names)
        ]
        return yaml.safe_dump({"endpoints": entries}, sort_keys=False)
