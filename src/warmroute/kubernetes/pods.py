"""Pods: reads them and lists the endpoints of each. WITHOUT IO."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from warmroute.kubernetes.objects import Object, text, texts
from warmroute.pool.endpoint import EndpointSpec

ACTIVE_PORTS = ("llm-d.ai/active-ports", "inference.networking.k8s.io/active-ports")
"""Annotations with the ports of the pool that a pod serves, separated by commas; the newer name comes first and wins."""
LONGEST_PORT = 16
"""Characters of a port with the spaces around it."""
CACHE_GENERATION = "warmroute/cache-generation"
"""Annotation with any text; when it changes, the pod's engine has lost its KV cache, and what it held is forgotten."""


@dataclass(frozen=True, slots=True)
class Container:
    """A container of a pod."""

    run: str
    """Container id and restart count: changes with every start."""
    ports: frozenset[int]
    """The containerPorts of the manifest."""


@dataclass(frozen=True, slots=True)
class Pod:
    """The fields of a pod that discovery uses."""

    namespace: str
    name: str
    uid: str
    address: str
    """Pod IP; empty until it is assigned."""
    ready: bool
    """Condition Ready is True and the pod is not terminating."""
    labels: dict[str, str]
    active_ports: frozenset[int] | None
    """Ports of the pool that the pod serves; None: all."""
    active_ports_text: str
    """The annotation that says so; empty if there is none."""
    containers: tuple[Container, ...]
    cache_generation: str = ""
    """The annotation :data:`CACHE_GENERATION`."""

    def serves_no_port(self, ports: Sequence[int]) -> bool:
        """Whether its annotation lists ports, and none of the pool's among them: most likely by mistake."""
        return bool(self.active_ports_text.strip()) and not (self.active_ports or frozenset()) & set(ports)

    def endpoints(self, ports: Sequence[int]) -> Iterator[EndpointSpec]:
        """One endpoint for each target port of the pool that the pod serves.

        None if the pod is not ready, or works for other pods only.
        """
        if not self.ready or not self.address:
            return
        for name, port in zip(endpoint_names(self.name, ports), ports, strict=True):
            if self.active_ports is None or port in self.active_ports:
                spec = EndpointSpec(
                    self.namespace,
                    name,
                    address=self.address,
                    port=port,
                    labels=self.labels,
                    incarnation=self._incarnation(port),
                    cache_generation=self.cache_generation,
                )
                if spec.answers_clients:
                    yield spec

    def _incarnation(self, port: int) -> str:
        """Changes when the engine restarts: from the containers that declare the port, or all if none does."""
        engine = [container for container in self.containers if port in container.ports] or self.containers
        return " ".join((self.uid, *(container.run for container in engine)))


def endpoint_names(pod: str, ports: Sequence[int]) -> list[str]:
    """Names of a pod's endpoints: the pod's name for one port, ``<pod>-rank-<i>`` for several."""
    return [pod] if len(ports) == 1 else [f"{pod}-rank-{rank}" for rank in range(len(ports))]


def read_pod(item: Object) -> Pod:
    """A pod from its object. Raises LookupError, TypeError or ValueError if a field is missing or wrong."""
    metadata, status = item["metadata"], item.get("status") or {}
    annotations = texts(metadata.get("annotations"))
    active_ports = next((annotations[key] for key in ACTIVE_PORTS if key in annotations), None)
    address = text(status.get("podIP") or "")
    if address:
        ip_address(address)
    conditions = status.get("conditions") or ()
    ready = any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
    ports = {
        container["name"]: frozenset(port["containerPort"] for port in container.get("ports") or ())
        for container in (item.get("spec") or {}).get("containers") or ()
    }
    return Pod(
        namespace=text(metadata["namespace"]),
        name=text(metadata["name"]),
        uid=text(metadata["uid"]),
        address=address,
        ready=ready and not metadata.get("deletionTimestamp"),
        labels=texts(metadata.get("labels")),
        active_ports=None if active_ports is None else _ports(active_ports),
        active_ports_text=active_ports or "",
        containers=tuple(
            Container(
                run=f"{container.get('containerID', '')}#{container.get('restartCount', 0)}",
                ports=ports.get(container["name"], frozenset()),
            )
            for container in status.get("containerStatuses") or ()
        ),
        cache_generation=annotations.get(CACHE_GENERATION, ""),
    )


def _ports(listed: str) -> frozenset[int]:
    return frozenset(int(port) for port in listed.split(",") if port.strip().isdecimal() and len(port) <= LONGEST_PORT)
