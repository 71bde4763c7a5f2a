"""Kubernetes objects for tests: the walk-through's pool and model, and pods."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
X = "inference.networking.x-k8s.io"

POOL: Object = {
    "apiVersion": f"{X}/v1alpha2",
    "kind": "InferencePool",
    "metadata": {"name": "vllm-qwen-pool", "annotations": {f"{X}/routing-strategy": "PREFIX_CACHE"}},
    "spec": {"targetPortNumber": 8000, "selector": {"app": "qwen"}, "extensionRef": {"name": "epp"}},
}
MODEL: Object = {
    "apiVersion": f"{X}/v1alpha2",
    "kind": "InferenceModel",
    "metadata": {"name": "inferencemodel-qwen"},
    "spec": {
        "modelName": "/model/qwen",
        "criticality": "Critical",
        "poolRef": {"group": X, "kind": "InferencePool", "name": "vllm-qwen-pool"},
        "targetModels": [{"name": "/model/qwen", "weight": 100}],
    },
}
POOL_REF = {"name": "vllm-qwen-pool"}
SAMPLES = Path(__file__).parents[2] / "deploy/samples"


def sample(name: str) -> list[Object]:
    """The documents of a manifest in deploy/samples."""
    return list(yaml.safe_load_all((SAMPLES / name).read_text(encoding="utf-8")))


def changed(item: Object, **paths: Any) -> Object:
    """A copy with values replaced: ``metadata__name="x"`` is ``metadata.name``; None removes the key."""
    result = copy.deepcopy(item)
    for path, value in paths.items():
        *parents, last = path.split("__")
        place = result
        for key in parents:
            place = place.setdefault(key, {})
        if value is None:
            place.pop(last, None)
        else:
            place[last] = value
    return result


def annotated(pool: Object, **annotations: str) -> Object:
    """The pool with only these annotations: ``routing_strategy``, ``runtime``, all others as environment."""
    keys = {"routing_strategy": f"{X}/routing-strategy", "runtime": f"{X}/model-server-runtime"}
    prefix = "inference-epp-env.networking.x-k8s.io/"
    return changed(pool, metadata__annotations={keys.get(k, prefix + k): v for k, v in annotations.items()})


def pod(name: str, address: str, *, ready: bool = True, port: int = 8000, restarts: int = 0, **paths: Any) -> Object:
    """A pod of the walk-through's Deployment; ``paths`` as in :func:`changed`."""
    item: Object = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": "qwen"}},
        "spec": {"containers": [{"name": "vllm", "image": "vllm", "ports": [{"containerPort": port}]}]},
        "status": {
            "podIP": address,
            "podIPs": [{"ip": address}],
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            "containerStatuses": [
                {"name": "vllm", "containerID": f"containerd://{name}-{restarts}", "restartCount": restarts}
            ],
        },
    }
    return changed(item, **paths)
