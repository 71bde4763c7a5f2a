"""What scraping costs: little beside a client that asks the same hundred engines and does not read what they say."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from warmroute.engines.scrape_target import ScrapeOutcome
from warmroute.engines.scraper import Scraper
from warmroute.pool.endpoint import EndpointSpec
from warmroute.pool.pool import Pool
from warmroute.settings import Settings
from warmroute.standalone.child import Child
from warmroute_lab.overhead.machine import cpu_seconds

pytestmark = pytest.mark.integration

ENGINES = 100
SECONDS = 6.0
BUDGET = 15.0
"""Times the bare client's CPU; 4 to 8 times is usual. In cores the same work differs sevenfold between machines."""

ENGINES_PROGRAM = """
import asyncio, sys

HELP = "# HELP {0} Some words on what it is.\\n# TYPE {0} gauge\\n{0}"
NAMES = ["num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "request_prompt_tokens_sum",
         "request_prompt_tokens_count", "time_to_first_token_seconds_count",
         "prompt_tokens_by_source_total", "prefix_cache_queries_total",
         "prefix_cache_hits_total", "cache_config_info"]

class Engine(asyncio.Protocol):
    answers = 0
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        Engine.answers += 1
        labels = '{engine="0",model_name="model",source="local_compute",block_size="16",num_gpu_blocks="9"} '
        body = "".join(HELP.format("vllm:" + name) + labels + str(Engine.answers) + "\\n" for name in NAMES)
        head = f"HTTP/1.1 200 OK\\r\\nserver: uvicorn\\r\\ncontent-length: {len(body)}\\r\\n\\r\\n"
        self.transport.write((head + body).encode())

async def main():
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(Engine, "127.0.0.1", 0) for _ in range(int(sys.argv[1]))]
    print(*[server.sockets[0].getsockname()[1] for server in servers], flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@contextmanager
def engines(count: int) -> Iterator[list[int]]:
    """Busy engines in a process of their own; gives their ports."""
    with subprocess.Popen([sys.executable, "-c", ENGINES_PROGRAM, str(count)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield [int(port) for port in process.stdout.readline().split()]
        finally:
            process.kill()


@pytest.mark.slow
async def test_a_hundred_engines_cost_a_few_times_what_asking_them_costs(tmp_path: Path) -> None:
    outcomes: Counter[ScrapeOutcome] = Counter()
    pool = Pool()
    settings = Settings(refresh_metrics_interval=1.0, idle_metrics_interval=1.0)
    scraper = Scraper(pool, settings, on_result=lambda endpoint, outcome: outcomes.update([outcome]))
    with engines(ENGINES) as ports:
        argv = [sys.executable, "-m", "warmroute_lab.overhead.bare_scraper", *map(str, ports)]
        pool.replace([EndpointSpec("default", f"e{port}", "127.0.0.1", port) for port in ports], time.monotonic())
        async with Child("bare scraper", argv, tmp_path / "bare.log") as bare:
            await scraper.start()
            try:
                await asyncio.sleep(2.5)  # connections are there, constants are read, phases are spread
                outcomes.clear()
                ours, floor, began = time.process_time(), cpu_seconds(bare.pid), time.monotonic()
                await asyncio.sleep(SECONDS)
                ours, floor = time.process_time() - ours, cpu_seconds(bare.pid) - floor
                seconds = time.monotonic() - began
            finally:
                await scraper.stop()
    assert outcomes.keys() == {ScrapeOutcome.OK}
    assert outcomes[ScrapeOutcome.OK] >= 0.8 * ENGINES * SECONDS
    print(
        f"{outcomes.total() / seconds:.0f} scrapes/s, {ours / seconds:.4f} core, {floor / seconds:.4f} for asking alone"
    )
    assert floor > 0
    assert ours < BUDGET * floor
