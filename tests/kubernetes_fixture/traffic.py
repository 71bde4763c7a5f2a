"""A busy cluster in a process of its own, so that its work is not counted as the picker's."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from kubernetes_fixture.api_server import ApiServer
from kubernetes_fixture.objects import POOL, pod

MANAGED_FIELDS = [{"manager": "kubelet", "fieldsV1": {f"f:{i}": {"f:x": {}, "f:y": {".": {}}} for i in range(150)}}]
"""About what the bookkeeping of a real pod takes: with it a pod has some 7 KB."""


def restless_pod(i: int, *, ready: bool, step: int) -> dict[str, Any]:
    """A pod as large as a real one."""
    paths = {"metadata__managedFields": MANAGED_FIELDS, "metadata__annotations": {"step": str(step)}}
    return pod(f"p{i:04}", f"10.0.{i // 250}.{i % 250}", ready=ready, **paths)


def changing_pods(kubeconfig: Path, count: int, per_second: float) -> None:
    """Serve a pool of ``count`` pods of which ``per_second`` turn ready or unready each second; until killed."""

    async def run() -> None:
        server = ApiServer()
        server.apply(POOL, *(restless_pod(i, ready=True, step=0) for i in range(count)))
        await server.start()
        server.write_kubeconfig(kubeconfig.with_suffix(".new")).rename(kubeconfig)
        step = 0
        while True:
            await asyncio.sleep(1 / per_second)
            step += 1
            server.apply(restless_pod(step * 37 % count, ready=step % 2 == 0, step=step))
            server.forget(200)

    asyncio.run(run())
