"""An InferencePool as the gateway sees it: which picker chooses its endpoints. WITHOUT IO."""

from __future__ import annotations

import json
from dataclasses import astuple, dataclass

from warmroute.kubernetes.inference_pool import GA_GROUP, read_pool
from warmroute.kubernetes.objects import Object, port_number, text

PICKER_PORT = 9002
"""Port of the picker where the pool names none (the default of the InferencePool API)."""
KIND = "InferencePool"


@dataclass(frozen=True, slots=True)
class PickedPool:
    """One InferencePool and its picker."""

    api_version: str
    namespace: str
    name: str
    ports: tuple[int, ...]
    """Ports of the pool's pods."""
    picker: str
    """Name of the picker's Service, in the pool's namespace."""
    picker_port: int
    fail_open: bool
    """``failureMode: FailOpen``: requests go on without the picker while it is away."""

    @property
    def key(self) -> str:
        """What no other pool has: API group, namespace and name."""
        return f"{self.api_version.partition('/')[0]}/{self.namespace}/{self.name}"

    @property
    def filter_name(self) -> str:
        """Name of the pool's ext_proc filter."""
        return f"envoy.filters.http.ext_proc/inferencepool/{self.key}"

    @property
    def picker_cluster(self) -> str:
        """Name of the cluster of the pool's picker."""
        return f"inferencepool-picker/{self.key}"

    @property
    def picker_host(self) -> str:
        """DNS name of the picker's Service."""
        return f"{self.picker}.{self.namespace}.svc"

    def to_json(self) -> str:
        """The pool as text, for :meth:`of_json`."""
        return json.dumps(astuple(self), separators=(",", ":"))

    @classmethod
    def of_json(cls, text: str) -> PickedPool:
        """The pool that :meth:`to_json` wrote. Raises ValueError or TypeError for other text."""
        api_version, namespace, name, ports, *rest = json.loads(text)
        return cls(api_version, namespace, name, tuple(ports), *rest)


def picked_pools(resources: list[bytes]) -> list[PickedPool]:
    """The InferencePools among Kubernetes objects in JSON, each once, in order.

    Raises ValueError for a pool that cannot be used, with its name, and for what is no object.
    """
    pools: dict[str, PickedPool] = {}
    for resource in resources:
        item = json.loads(resource)
        if not isinstance(item, dict):
            raise ValueError("a resource is not a JSON object")
        if item.get("kind") != KIND:
            continue
        try:
            read = read_pool(item)
            picker, port, mode = _picker_of(item)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(f"the InferencePool {_name_of(item)} cannot be used: {error!r}") from error
        pool = PickedPool(read.api_version, read.namespace, read.name, read.ports, picker, port, mode == "FailOpen")
        pools[pool.key] = pool
    return list(pools.values())


def _name_of(item: Object) -> str:
    metadata = item.get("metadata")
    return f"{metadata.get('namespace')}/{metadata.get('name')}" if isinstance(metadata, dict) else "without metadata"


def _picker_of(item: Object) -> tuple[str, int, object]:
    """Service, port and failure mode of the picker: ``endpointPickerRef`` in v1, ``extensionRef`` in v1alpha2."""
    spec = item["spec"]
    if str(item["apiVersion"]).startswith(f"{GA_GROUP}/"):
        reference = spec["endpointPickerRef"]
        port = reference.get("port") or {}
        number = port.get("number") if isinstance(port, dict) else None
    else:
        reference = spec["extensionRef"]
        number = reference.get("portNumber")
    kind = reference.get("kind") or "Service"
    if kind != "Service":
        raise ValueError(f"its picker must be a Service, not a {kind}")
    name = text(reference["name"])
    if not name:
        raise ValueError("its picker has no name")
    return name, PICKER_PORT if number is None else port_number(number), reference.get("failureMode")
