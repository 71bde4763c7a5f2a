"""What following a large, restless pool costs."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import time

import pytest
from kubernetes_fixture.traffic import changing_pods

from warmroute.discovery.cluster import Cluster
from warmroute.discovery.kubernetes import KubernetesDiscovery
from warmroute.pool.endpoint import Endpoint
from warmroute.pool.pool import Pool, PoolListener
from warmroute.routing.router import Router, RoutingConstants
from warmroute.settings import Settings

SECONDS = 4.0


class Changes(PoolListener):
    def __init__(self) -> None:
        self.count = 0

    def endpoint_changed(self, endpoint: Endpoint, now: float) -> None:
        self.count += 1


@pytest.mark.slow
async def test_a_thousand_pods_at_fifty_events_a_second_take_under_a_twentieth_of_a_core(tmp_path):
    kubeconfig = tmp_path / "kubeconfig"
    busy = multiprocessing.get_context("spawn").Process(target=changing_pods, args=(kubeconfig, 1000, 50.0))
    busy.start()
    try:
        async with asyncio.timeout(30):
            while not kubeconfig.exists():
                await asyncio.sleep(0.05)
        pool, changes, cluster = Pool(), Changes(), Cluster()
        Router(pool, RoutingConstants(), rng=random.Random(1), now=time.monotonic())
        pool.subscribe(changes, 0.0)
        cluster.find({"KUBECONFIG": str(kubeconfig)})
        settings = Settings(pool_name="vllm-qwen-pool")
        discovery = KubernetesDiscovery(cluster, settings, pool, apply=lambda _: None, reloaded=lambda _: None)
        await discovery.start()
        try:
            async with asyncio.timeout(30):
                while not pool.synced:
                    await asyncio.sleep(0.05)
            await asyncio.sleep(0.5)
            before, cpu = changes.count, time.process_time()
            await asyncio.sleep(SECONDS)
            share, events = (time.process_time() - cpu) / SECONDS, (changes.count - before) / SECONDS
        finally:
            await discovery.stop()
    finally:
        busy.kill()
        busy.join()
    print(f"{events:.0f} changes/s: {share:.1%} of a core")
    assert len(pool.endpoints) > 900  # those that were not ready at first are no members
    assert events > 15, "half of the events change a pod that is ready or makes one so"
    assert share < 0.05
