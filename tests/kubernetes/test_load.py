"""What following a large, restless pool costs."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
import time
from pathlib import Path

import pytest

from tests.factories import routing_constants
from tests.fixtures.kubernetes.traffic import changing_pods, restless_pod
from tests.waiting import eventually
from warmroute.kubernetes.api import Cluster
from warmroute.kubernetes.discovery import KubernetesDiscovery
from warmroute.pool.endpoint import Endpoint
from warmroute.pool.pool import Pool, PoolListener
from warmroute.routing.router import Router
from warmroute.settings import Settings

pytestmark = pytest.mark.integration

SECONDS = 4.0
PAUSE = 0.02
DECODED = 2
"""Pods decoded after each pause: a few at a time, so that they meet the caches as cold as the events do."""
EVENT = json.dumps({"type": "MODIFIED", "object": restless_pod(1, ready=True, step=1)})
MOST = 60.0
"""9 to 13 are usual, 31 were seen on a machine with a load of 58."""


class Changes(PoolListener):
    def __init__(self) -> None:
        self.count = 0

    def endpoint_changed(self, endpoint: Endpoint, now: float) -> None:
        self.count += 1


@pytest.mark.slow
async def test_following_a_thousand_pods_costs_little_more_than_reading_what_changes(tmp_path: Path) -> None:
    """Fifty events a second. What decoding a pod's JSON costs is measured between them: processors differ, and are shared.

    On an idle one 3 % of a core go to it.
    """
    kubeconfig = tmp_path / "kubeconfig"
    busy = multiprocessing.get_context("spawn").Process(target=changing_pods, args=(kubeconfig, 1000, 50.0))
    busy.start()
    try:
        await eventually(kubeconfig.exists)
        pool, changes, cluster = Pool(), Changes(), Cluster()
        Router(pool, routing_constants(), rng=random.Random(1), now=time.monotonic())
        pool.subscribe(changes, 0.0)
        cluster.find({"KUBECONFIG": str(kubeconfig)})
        settings = Settings(pool_name="vllm-qwen-pool")
        discovery = KubernetesDiscovery(cluster, settings, pool, apply=lambda _: None, reloaded=lambda _: None)
        await discovery.start()
        try:
            await eventually(lambda: pool.synced)
            await asyncio.sleep(0.5)
            before, begun, decoding, decoded = changes.count, time.process_time(), 0.0, 0
            for _ in range(round(SECONDS / PAUSE)):
                await asyncio.sleep(PAUSE)
                start = time.process_time()
                for _ in range(DECODED):
                    json.loads(EVENT)
                decoding += time.process_time() - start
                decoded += DECODED
            following = time.process_time() - begun - decoding
            events = changes.count - before
        finally:
            await discovery.stop()
    finally:
        busy.kill()
        busy.join()
    assert len(pool.endpoints) > 900  # those that were not ready at first are no members
    assert events > 15 * SECONDS, "half of the events change a pod that is ready or makes one so"
    ratio = following / events / (decoding / decoded)
    print(
        f"{events} changes in {SECONDS:g} s, {following / SECONDS:.1%} of a core, each {ratio:.0f} times its decoding"
    )
    assert ratio < MOST
