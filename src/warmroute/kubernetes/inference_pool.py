"""InferencePool of either API group: selector, ports and annotations. WITHOUT IO."""

from __future__ import annotations

from dataclasses import dataclass

from warmroute.kubernetes.objects import Object, port_number, text, texts

GA_GROUP = "inference.networking.k8s.io"
X_GROUP = "inference.networking.x-k8s.io"
VERSIONS = {GA_GROUP: "v1", X_GROUP: "v1alpha2"}
"""Version read of each API group. If both groups have the pool, the first one is served."""


@dataclass(frozen=True, slots=True)
class InferencePool:
    """The fields of an InferencePool that discovery uses."""

    api_version: str
    namespace: str
    name: str
    uid: str
    selector: dict[str, str]
    """Labels that a pod must have; never empty."""
    ports: tuple[int, ...]
    annotations: dict[str, str]
    terminating: bool

    @property
    def label_selector(self) -> str:
        """The selector as the query parameter ``labelSelector``."""
        return ",".join(f"{key}={value}" for key, value in sorted(self.selector.items()))


def read_pool(item: Object) -> InferencePool:
    """A pool from its object. Raises LookupError, TypeError or ValueError if a field is missing or wrong."""
    metadata, spec = item["metadata"], item["spec"]
    if item["apiVersion"].startswith(f"{GA_GROUP}/"):
        selector = texts(spec["selector"]["matchLabels"])
        ports = tuple(port_number(port["number"]) for port in spec["targetPorts"])
    else:
        selector = texts(spec["selector"])
        ports = (port_number(spec["targetPortNumber"]),)
    if not selector or not ports:
        raise ValueError("an InferencePool needs a selector and a target port")
    return InferencePool(
        api_version=item["apiVersion"],
        namespace=text(metadata["namespace"]),
        name=text(metadata["name"]),
        uid=text(metadata.get("uid", "")),
        selector=selector,
        ports=ports,
        annotations=texts(metadata.get("annotations")),
        terminating=bool(metadata.get("deletionTimestamp")),
    )
