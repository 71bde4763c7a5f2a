"""Pods: which endpoints one is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from warmroute.kubernetes.objects import Object
from warmroute.pool.endpoint import EndpointSpec

ACTIVE_PORTS = ("llm-d.ai/active-ports", "inference.networking.k8s.io/active-ports")
"""Annotations that say which of the pool's ports a pod serves, separated by commas; the newer first."""


@dataclass(frozen=True, slots=True)
class Container:
    """A container as it runs now."""

    run: str
    """Changes with every start of the container."""
    ports: frozenset[int]
    """Those that the pod's manifest declares."""


@dataclass(frozen=True, slots=True)
class Pod:
    """What matters of a pod."""

    namespace: str
    name: str
    uid: str
    address: str
    """Empty until it has one."""
    ready: bool
    """Condition Ready, and not terminating."""
    labels: dict[str, str]
    active_ports: frozenset[int] | None
    """None: all of the pool's."""
    containers: tuple[Container, ...]

    def endpoints(self, ports: Sequence[int]) -> Iterator[EndpointSpec]:
        """One for each of the pool's target ports that the pod serves; none unless it is ready."""
        if not self.ready or not self.address:
            return
        for name, port in zip(endpoint_names(self.name, ports), ports, strict=True):
            if self.active_ports is None or port in self.active_ports:
                yield EndpointSpec(
                    self.namespace,
                    name,
                    address=self.address,
                    port=port,
                    labels=self.labels,
                    incarnation=self._incarnation(port),
                )

    def _incarnation(self, port: int) -> str:
        """Another one once the engine's process is: the container that declares the port; all of them if none does."""
        engine = [container for container in self.containers if port in container.ports] or self.containers
        return " ".join((self.uid, *(container.run for container in engine)))


def endpoint_names(pod: str, ports: Sequence[int]) -> list[str]:
    """The names of the endpoints of a pod of that name: its own with one port, ``<pod>-rank-<i>`` with several."""
    return [pod] if len(ports) == 1 else [f"{pod}-rank-{rank}" for rank in range(len(ports))]


def read_pod(item: Object) -> Pod:
    """A pod from its object. Raises LookupError, TypeError or ValueError for what is none."""
    metadata, status = item["metadata"], item.get("status") or {}
    conditions = status.get("conditions") or ()
    ready = any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
    ports = {
        container["name"]: frozenset(port["containerPort"] for port in container.get("ports") or ())
        for container in (item.get("spec") or {}).get("containers") or ()
    }
    return Pod(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        address=status.get("podIP") or "",
        ready=ready and not metadata.get("deletionTimestamp"),
        labels=metadata.get("labels") or {},
        active_ports=_active_ports(metadata.get("annotations") or {}),
        containers=tuple(
            Container(
                run=f"{container.get('containerID', '')}#{container.get('restartCount', 0)}",
                ports=ports.get(container["name"], frozenset()),
            )
            for container in status.get("containerStatuses") or ()
        ),
    )


def _active_ports(annotations: dict[str, str]) -> frozenset[int] | None:
    text = next((annotations[key] for key in ACTIVE_PORTS if key in annotations), None)
    if text is None:
        return None
    return frozenset(int(port) for port in text.split(",") if port.strip().isdecimal())
