"""The simulated engine over a real socket, beside recordings of the real one."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.recordings import engine_recording
from tests.waiting import eventually
from warmroute.engines.dialects import VLLM
from warmroute.engines.figures import read_constants, read_figures
from warmroute.engines.page import ScrapedPage
from warmroute.engines.probe import Probe
from warmroute.errors import ConfigurationError
from warmroute.pool.endpoint import EngineState
from warmroute_lab.simulator.faults import Faults
from warmroute_lab.simulator.options import SimulatorOptions
from warmroute_lab.simulator.server import SimulatorServer, simulate

pytestmark = pytest.mark.integration

MODEL = "/model/qwen"
MESSAGES = [{"role": "user", "content": "Tell me about caches. " * 40}]

Start = Callable[..., Awaitable[SimulatorServer]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts simulators, twenty times as fast as real ones, and stops them after the test."""
    servers: list[SimulatorServer] = []

    async def _start(**options: Any) -> SimulatorServer:
        server = SimulatorServer(SimulatorOptions(**{"model": MODEL, "time_scale": 20.0, **options}))
        await server.start()
        servers.append(server)
        return server

    yield _start
    for server in servers:
        await server.stop()


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        yield session


@pytest.fixture
def recorded() -> dict[str, Any]:
    return json.loads(engine_recording("vllm-0.26-responses.json"))


async def ask(
    client: aiohttp.ClientSession, server: SimulatorServer, path: str = "/v1/chat/completions", **body: Any
) -> Any:
    body = {"model": MODEL, **({} if "prompt" in body else {"messages": MESSAGES}), "max_tokens": 4} | body
    async with client.post(server.url + path, json=body) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def stream(
    client: aiohttp.ClientSession, server: SimulatorServer, path: str = "/v1/chat/completions", **body: Any
) -> list[dict[str, Any]]:
    body = {"model": MODEL, "messages": MESSAGES, "max_tokens": 4, "stream": True} | body
    async with client.post(server.url + path, json=body) as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        return chunks_of(await response.text())


def chunks_of(page: str) -> list[dict[str, Any]]:
    events = [event for event in page.split("\n\n") if event]
    assert events[-1] == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]


def text_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])


def shape(value: Any) -> Any:
    """Names and types of a JSON value; of a list, its first item's."""
    if isinstance(value, dict):
        return {name: shape(item) for name, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value[:1]]
    return type(value).__name__


def series_of(line: str) -> str:
    """A sample's name and labels, without the labels' values and its own."""
    return re.sub(r'="[^"]*"', "", line).rpartition(" ")[0]


async def test_answers_have_the_real_shape(
    start: Start, client: aiohttp.ClientSession, recorded: dict[str, Any]
) -> None:
    server = await start()
    assert shape(await ask(client, server)) == shape(json.loads(recorded["whole"]["body"]))
    real = chunks_of(recorded["streaming"]["body"])
    ours = await stream(client, server, stream_options={"include_usage": True})
    assert [list(chunk) for chunk in (ours[0], ours[-1])] == [list(chunk) for chunk in (real[0], real[-1])]
    assert shape(ours[0]) == shape(real[0])
    assert shape(ours[-1]) == shape(real[-1])
    assert shape(ours[-2]) == shape(real[-2])
    async with client.get(server.url + "/v1/models") as response:
        assert shape(await response.json()) == shape(json.loads(recorded["models"][1]))


async def test_errors_are_the_real_ones(start: Start, client: aiohttp.ClientSession, recorded: dict[str, Any]) -> None:
    server = await start()
    for name, body in (("unknown_model", {"model": "nope", "messages": MESSAGES}), ("missing_field", {"model": MODEL})):
        async with client.post(server.url + "/v1/chat/completions", json=body) as response:
            assert [response.status, await response.text()] == recorded[name]


async def test_the_metrics_page_is_a_real_one(start: Start, client: aiohttp.ClientSession) -> None:
    real = engine_recording("vllm-0.26-metrics.txt").decode().splitlines()
    server = await start()
    await ask(client, server)
    async with client.get(server.url + "/metrics") as response:
        ours = (await response.text()).splitlines()
    for line in ours:
        if line.startswith("#"):
            assert line in real
    series = {series_of(line) for line in real}
    assert all(series_of(line) in series for line in ours if "cache_config_info" not in line)
    config = next(line for line in real if line.startswith("vllm:cache_config_info"))
    ours_config = next(line for line in ours if line.startswith("vllm:cache_config_info"))
    assert set(re.findall(r'\w+="[^"]*"', ours_config)) <= set(re.findall(r'\w+="[^"]*"', config))
    buckets = [
        re.findall(r'le="([^"]+)"', line) for line in real if line.startswith("vllm:time_to_first_token_seconds_b")
    ]
    assert buckets == [
        re.findall(r'le="([^"]+)"', line) for line in ours if line.startswith("vllm:time_to_first_token_seconds_b")
    ]


async def test_the_metrics_page_counts_responses_by_path_method_and_status(
    start: Start, client: aiohttp.ClientSession
) -> None:
    server = await start()
    await ask(client, server)
    await stream(client, server)
    await ask(client, server, "/v1/completions", prompt="a prompt")
    await client.post(server.url + "/v1/chat/completions", data=b"{")
    await client.get(server.url + "/v1/models")
    for uncounted in ("/health", "/version", "/metrics/", "/nope"):
        await client.get(server.url + uncounted)
    await client.post(server.url + "/simulator/faults", json={"fail_rate": 1})
    for _ in range(3):
        await client.post(server.url + "/v1/chat/completions", json={"messages": MESSAGES})
    async with client.get(server.url + "/metrics") as response:
        page = await response.text()
    counted = [line for line in page.splitlines() if line.startswith("http_requests_total")]
    assert sorted(counted) == [
        'http_requests_total{handler="/v1/chat/completions",method="POST",status="2xx"} 2.0',
        'http_requests_total{handler="/v1/chat/completions",method="POST",status="4xx"} 1.0',
        'http_requests_total{handler="/v1/chat/completions",method="POST",status="5xx"} 3.0',
        'http_requests_total{handler="/v1/completions",method="POST",status="2xx"} 1.0',
        'http_requests_total{handler="/v1/models",method="GET",status="2xx"} 1.0',
        'http_requests_total{handler="none",method="GET",status="4xx"} 1.0',
    ]
    figures = read_figures(ScrapedPage(page.encode()), VLLM)
    assert (figures.counters["responses"], figures.counters["failed_responses"]) == (7, 3)


@pytest.mark.parametrize("blocks", [None, 1001])
async def test_the_picker_reads_the_longest_request_from_the_metrics_page(
    start: Start, client: aiohttp.ClientSession, blocks: int | None
) -> None:
    """As in vLLM, a request of the maximum length fits into the KV cache, and a longer one gets 400."""
    server = await start(num_gpu_blocks=blocks)
    async with client.get(server.url + "/metrics") as response:
        constants = read_constants(ScrapedPage(await response.read()), VLLM)
    async with client.get(server.url + "/v1/models") as response:
        longest = (await response.json())["data"][0]["max_model_len"]
    assert longest == (32_768 if blocks is None else 16_000)
    assert constants.max_model_len == longest
    assert constants.capacity_tokens is not None
    assert constants.capacity_tokens >= longest
    prompt = list(range(longest))
    await ask(client, server, "/v1/completions", prompt=prompt[:-1], max_tokens=1)
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 1}
    async with client.post(server.url + "/v1/completions", json=body) as response:
        assert response.status == 400
        error = (await response.json())["error"]
    assert error["message"].startswith(f"This model's maximum context length is {longest} tokens.")


async def test_the_next_turn_finds_prompt_and_answer_in_the_cache(start: Start, client: aiohttp.ClientSession) -> None:
    server = await start()
    first = await ask(client, server, max_tokens=160)
    answer = first["choices"][0]["message"]["content"]
    turn = [*MESSAGES, {"role": "assistant", "content": answer}, {"role": "user", "content": "And then?"}]
    second = await ask(client, server, messages=turn)
    known = first["usage"]["total_tokens"] - 1
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == known // 16 * 16


async def test_a_salt_and_an_adapter_keep_to_themselves(start: Start, client: aiohttp.ClientSession) -> None:
    server = await start(lora_modules=("adapter",))
    await ask(client, server)
    for private in ({"cache_salt": "mine"}, {"model": "adapter"}):
        for expected in (False, True):
            usage = (await ask(client, server, **private))["usage"]
            assert bool(usage["prompt_tokens_details"]["cached_tokens"]) == expected


async def test_streamed_and_whole_answers_are_the_same(start: Start, client: aiohttp.ClientSession) -> None:
    server = await start()
    whole = (await ask(client, server, max_tokens=30))["choices"][0]
    chunks = await stream(client, server, max_tokens=30)
    assert text_of(chunks) == whole["message"]["content"]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["finish_reason"] == "length"
    assert not any("usage" in chunk for chunk in chunks)


async def test_without_a_limit_an_answer_stops_by_itself(start: Start, client: aiohttp.ClientSession) -> None:
    server = await start()
    answer = await ask(client, server, max_tokens=None)
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] > 4
    limited = await ask(client, server, max_tokens=99, max_completion_tokens=7)
    assert limited["usage"]["completion_tokens"] == 7


@pytest.mark.parametrize("prompt", ["a text of some length", [1, 2, 3, 4, 5], ["a text of some length"], [[1, 2, 3]]])
async def test_completions(start: Start, client: aiohttp.ClientSession, prompt: Any) -> None:
    server = await start()
    answer = await ask(client, server, "/v1/completions", prompt=prompt)
    assert answer["object"] == "text_completion"
    assert len(answer["choices"][0]["text"]) == 16
    chunks = await stream(client, server, "/v1/completions", prompt=prompt)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == answer["choices"][0]["text"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", b"{"),
        ("/v1/chat/completions", b"[1]"),
        ("/v1/chat/completions", b'{"messages": "hello"}'),
        ("/v1/chat/completions", b'{"messages": []}'),
        ("/v1/chat/completions", b'{"messages": [1]}'),
        ("/v1/chat/completions", b'{"messages": [{"role": "user"}], "max_tokens": "four"}'),
        ("/v1/chat/completions", b'{"messages": [{"role": "user"}], "max_tokens": 0}'),
        ("/v1/chat/completions", b'{"messages": [{"role": "user"}], "n": 2}'),
        ("/v1/chat/completions", b'{"messages": [{"role": "user"}], "tools": "hammer"}'),
        ("/v1/chat/completions", b'{"messages": [{"role": "user"}], "model": 7}'),
        ("/v1/completions", b'{"prompt": ""}'),
        ("/v1/completions", b'{"prompt": ["a", "b"]}'),
        ("/v1/completions", b'{"prompt": [-1]}'),
        ("/v1/completions", b'{"prompt": "long", "max_tokens": 40000}'),
        ("/tokenize", b"{}"),
        ("/simulator/faults", b'{"rain": 1}'),
        ("/simulator/faults", b'{"fail_rate": 2}'),
        ("/v1/load_lora_adapter", b"{}"),
        ("/v1/unload_lora_adapter", b'{"lora_name": []}'),
    ],
)
async def test_bad_requests_are_told_so(start: Start, client: aiohttp.ClientSession, path: str, body: bytes) -> None:
    server = await start()
    async with client.post(server.url + path, data=body) as response:
        assert response.status == 400
        assert response.headers["x-simulator-name"] == f"simulator-{server.port}"
        error = (await response.json())["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["code"] == 400


async def test_headers_of_a_stream_leave_before_its_first_token(start: Start, client: aiohttp.ClientSession) -> None:
    server = await start(time_scale=0.1)
    body = {"model": MODEL, "messages": MESSAGES, "stream": True}
    async with client.post(server.url + "/v1/chat/completions", json=body) as response:
        assert response.status == 200
        assert server.engine.counters.generation_tokens == 0


async def test_a_client_that_leaves_frees_its_blocks(start: Start, client: aiohttp.ClientSession) -> None:
    server = await start(time_scale=1.0)
    body = {"model": MODEL, "messages": MESSAGES, "max_tokens": 10_000, "stream": True}
    async with client.post(server.url + "/v1/chat/completions", json=body) as response:
        await response.content.readany()
        assert server.engine.running == 1
    await eventually(lambda: server.engine.counters.aborted == 1)
    assert server.engine.pending == 0
    assert server.engine.kv_usage == 0
    async with client.get(server.url + "/metrics") as page:
        assert 'finished_reason="abort",model_name="/model/qwen"} 1.0' in await page.text()


@pytest.mark.parametrize("step", ["prepare", "write"])
async def test_a_client_that_left_is_no_error_of_the_server(
    start: Start,
    client: aiohttp.ClientSession,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    step: str,
) -> None:
    """The handler may write to a connection that is closing before it is cancelled."""
    server = await start()

    async def closing(*_: Any) -> None:
        raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")

    monkeypatch.setattr(web.StreamResponse, step, closing)
    body = {"model": MODEL, "messages": MESSAGES, "stream": True}
    with pytest.raises(aiohttp.ClientError):
        async with client.post(server.url + "/v1/chat/completions", json=body) as response:
            await response.read()
    assert server.engine.counters.aborted == 1
    assert [record.getMessage() for record in caplog.records] == []


@pytest.mark.parametrize("stream", [False, True])
async def test_an_id_of_any_bytes_comes_back(start: Start, client: aiohttp.ClientSession, stream: bool) -> None:
    """Servers of Python read a header as Latin-1, whatever its bytes are."""
    server = await start()
    body = json.dumps({"messages": MESSAGES, "max_tokens": 1, "stream": stream}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-request-id: a\xff\xe9\r\n")
    writer.write(b"content-length: %d\r\n\r\n" % len(body) + body)
    answer = (await reader.read()).decode()
    writer.close()
    assert '"id":"chatcmpl-a\u00ff\u00e9"' in answer


async def test_only_the_trailing_slash_filters_the_metrics(start: Start, client: aiohttp.ClientSession) -> None:
    server = await start()
    query = "?name[]=vllm:num_requests_running&name[]=vllm:prompt_tokens_total&name[]=process_start_time_seconds"
    async with client.get(server.url + "/metrics/" + query) as response:
        filtered = await response.text()
    async with client.get(server.url + "/metrics" + query) as response:
        whole = await response.text()
    samples = [line.partition("{")[0].partition(" ")[0] for line in filtered.splitlines() if not line.startswith("#")]
    assert samples == ["process_start_time_seconds", "vllm:num_requests_running", "vllm:prompt_tokens_total"]
    assert len(whole) > 20 * len(filtered)
    assert "vllm:time_to_first_token_seconds_bucket" in whole


async def test_the_gauges_follow_the_engine(start: Start, client: aiohttp.ClientSession) -> None:
    server = await start(time_scale=1.0, max_num_seqs=1, num_gpu_blocks=1001, lora_modules=("adapter",), max_loras=2)
    asking = [
        asyncio.create_task(ask(client, server, max_tokens=2000, model=model)) for model in ("adapter", MODEL, MODEL)
    ]
    await eventually(lambda: server.engine.running == 1 and server.engine.waiting == 2)
    async with client.get(server.url + "/metrics/") as response:
        page = await response.text()
    for task in asking:
        task.cancel()
    labels = f'{{engine="0",model_name="{MODEL}"}}'
    assert f"vllm:num_requests_running{labels} 1.0" in page
    assert f"vllm:num_requests_waiting{labels} 2.0" in page
    assert 'vllm:lora_requests_info{max_lora="2",running_lora_adapters="adapter",waiting_lora_adapters=""}' in page
    assert 'kv_cache_size_tokens="16016"' in page
    assert 'num_gpu_blocks="1001"' in page
    usage = re.search(r"vllm:kv_cache_usage_perc\{.*\} (\S+)", page)
    assert usage is not None
    assert 0 < float(usage[1]) < 1


async def cached_tokens(client: aiohttp.ClientSession, server: SimulatorServer) -> int:
    """Of one prompt of about 230 tokens, as the engine finds it now."""
    usage = (await ask(client, server))["usage"]
    return int((usage["prompt_tokens_details"] or {}).get("cached_tokens", 0))


async def state_of(client: aiohttp.ClientSession, server: SimulatorServer) -> EngineState:
    """What the picker reads from the page."""
    probe = Probe(VLLM, "/metrics")
    for _ in range(2):
        async with client.get(server.url + probe.query()) as response:
            answer = probe.answer(response.status, await response.read(), 0.0)
        if isinstance(answer, EngineState):
            return answer
    raise AssertionError("no page")


@pytest.mark.parametrize("how", ["/reset_prefix_cache", "/sleep", "/sleep?level=2"])
async def test_a_cache_is_emptied_in_a_living_engine(start: Start, client: aiohttp.ClientSession, how: str) -> None:
    server = await start()
    await cached_tokens(client, server)
    assert await cached_tokens(client, server) > 200
    async with client.post(server.url + how) as response:
        assert response.status == 200
    if "sleep" in how:
        assert (await state_of(client, server)).sleeping
        async with client.post(server.url + "/v1/completions", json={"model": MODEL, "prompt": "x"}) as response:
            assert response.status == 503
        async with client.post(server.url + "/wake_up") as response:
            assert response.status == 200
    async with client.get(server.url + "/is_sleeping") as response:
        assert await response.json() == {"is_sleeping": False}
    assert not (await state_of(client, server)).sleeping
    assert await cached_tokens(client, server) == 0
    assert await cached_tokens(client, server) > 200


async def test_an_engine_without_a_prefix_cache_says_so(start: Start, client: aiohttp.ClientSession) -> None:
    server = await start(prefix_caching=False)
    for _ in range(3):
        assert await cached_tokens(client, server) == 0
    state = await state_of(client, server)
    assert (state.prefix_caching, state.prefix_queries_total, state.caches_prompts) == (False, 0.0, False)


async def test_blocks_of_another_size_keep_the_size_of_the_cache(start: Start, client: aiohttp.ClientSession) -> None:
    server = await start(block_size=100)
    await cached_tokens(client, server)
    assert await cached_tokens(client, server) == 200
    state = await state_of(client, server)
    assert state.block_size == 100
    assert state.capacity_tokens == pytest.approx(1_041_616, abs=100)


async def test_a_page_of_several_api_servers(start: Start, client: aiohttp.ClientSession) -> None:
    server = await start(api_servers=8, num_gpu_blocks=100)
    async with client.get(server.url + "/metrics") as response:
        page = await response.text()
    assert len(re.findall(r'vllm:kv_cache_usage_perc\{.*pid="\d+"', page)) == 8
    assert "process_start_time_seconds" not in page
    asked = asyncio.create_task(ask(client, server, max_tokens=1000))
    await eventually(lambda: server.engine.kv_usage > 0.1)
    assert (await state_of(client, server)).kv_usage > 0.1, "and not an eighth of it"
    await asked


async def test_data_parallel_engines_behind_one_port(start: Start, client: aiohttp.ClientSession) -> None:
    server = await start(data_parallel_size=3)

    async def cached_on(rank: int) -> int:
        body = {"model": MODEL, "messages": MESSAGES, "max_tokens": 2}
        headers = {"X-data-parallel-rank": str(rank)}
        async with client.post(server.url + "/v1/chat/completions", json=body, headers=headers) as response:
            usage = (await response.json())["usage"] if response.status == 200 else {}
            return int((usage["prompt_tokens_details"] or {}).get("cached_tokens", 0)) if usage else -response.status

    assert [await cached_on(rank) for rank in (0, 1, 1, 3)] == [0, 0, pytest.approx(232, abs=20), -400]
    for wrong in ("-1", "", "9" * 5000):
        async with client.post(
            server.url + "/v1/completions", json={"prompt": "x"}, headers={"X-data-parallel-rank": wrong}
        ) as r:
            assert r.status == 400
    probe = Probe(VLLM, "/metrics", split_ranks=True)
    async with client.get(server.url + probe.query()) as response:
        probe.answer(response.status, await response.read(), 0.0)
    assert [state.prompt_requests_total for state in probe.states] == [1.0, 2.0, 0.0]
    assert [bool(state.prefix_hits_total) for state in probe.states] == [False, True, False]


async def test_adapters_come_and_go(start: Start, client: aiohttp.ClientSession) -> None:
    server = await start()
    for path, status in (("load", 200), ("load", 400), ("unload", 200), ("unload", 404)):
        async with client.post(f"{server.url}/v1/{path}_lora_adapter", json={"lora_name": "a", "lora_path": "/a"}) as r:
            assert r.status == status


async def test_tokenize_counts_what_the_engine_counts(start: Start, client: aiohttp.ClientSession) -> None:
    server = await start()
    usage = (await ask(client, server))["usage"]
    async with client.post(server.url + "/tokenize", json={"model": MODEL, "messages": MESSAGES}) as response:
        content = await response.json()
    assert content["count"] == len(content["tokens"]) == usage["prompt_tokens"]
    assert content["max_model_len"] == 32768


async def test_faults_can_be_set_while_it_runs(start: Start, client: aiohttp.ClientSession) -> None:
    server = await start(name="pod-3", faults=Faults(fail_rate=1.0))
    body = {"model": MODEL, "messages": MESSAGES, "max_tokens": 2}
    url = server.url + "/v1/chat/completions"
    async with client.post(url, json=body) as response:
        assert response.status == 500
        assert response.headers["x-simulator-name"] == "pod-3"
    async with client.post(server.url + "/simulator/faults", json={"fail_rate": 0, "reset_rate": 1}) as response:
        assert await response.json() == {"fail_rate": 0, "reset_rate": 1, "stall_rate": 0.0}
    with pytest.raises(aiohttp.ClientConnectionError):
        await client.post(url, json=body)
    async with client.post(server.url + "/simulator/faults", json={"reset_rate": 0, "stall_rate": 1}) as response:
        assert response.status == 200
    with pytest.raises(TimeoutError):
        await client.post(url, json=body, timeout=aiohttp.ClientTimeout(total=0.2))
    async with client.post(server.url + "/simulator/faults", json={"stall_rate": 0}) as response:
        assert response.status == 200
    async with client.post(url, json=body) as response:
        assert response.status == 200
    assert server.engine.pending == 0


async def test_a_slow_start_refuses_at_first(start: Start, client: aiohttp.ClientSession) -> None:
    server = await start(slow_start=2.0)
    async with client.get(server.url + "/health") as response:
        assert response.status == 503
    async with asyncio.timeout(60):
        while True:
            async with client.get(server.url + "/health") as response:
                if response.status == 200:
                    break
            await asyncio.sleep(0.02)


async def test_unknown_paths_and_methods(start: Start, client: aiohttp.ClientSession) -> None:
    server = await start()
    async with client.get(server.url + "/nope") as response:
        assert (response.status, await response.json()) == (404, {"detail": "Not Found"})
    async with client.get(server.url + "/v1/chat/completions") as response:
        assert (response.status, await response.json()) == (405, {"detail": "Method Not Allowed"})
    async with client.get(server.url + "/version") as response:
        assert "version" in await response.json()


async def test_a_restart_is_a_fresh_engine_on_the_same_port(start: Start, client: aiohttp.ClientSession) -> None:
    server = await start()
    await ask(client, server)
    port = server.port
    await server.stop()
    with pytest.raises(aiohttp.ClientConnectionError):
        await client.get(server.url + "/health")
    await server.start()
    assert server.port == port
    assert (await ask(client, server))["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


async def test_a_compressed_body_is_not_json(start: Start, client: aiohttp.ClientSession) -> None:
    """vLLM does not decompress request bodies either."""
    server = await start()
    body = gzip.compress(json.dumps({"model": MODEL, "messages": MESSAGES}).encode())
    headers = {"content-encoding": "gzip", "content-type": "application/json"}
    async with client.post(server.url + "/v1/chat/completions", data=body, headers=headers) as response:
        assert response.status == 400


async def test_time_scale_divides_the_times(start: Start, client: aiohttp.ClientSession) -> None:
    """What takes seconds takes a scale-th of them; asserted on the engine's own clock, which runs that much faster."""
    server = await start(time_scale=20.0)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await ask(client, server, max_tokens=400)
    wall = loop.time() - began
    assert server.engine.counters.generation_tokens == 400
    assert 400 * 0.0055 / 20 < wall < 400 * 0.0055 / 2


async def test_a_taken_port_is_a_clear_error(start: Start) -> None:
    server = await start()
    with pytest.raises(ConfigurationError, match=f"cannot listen on 127.0.0.1:{server.port}"):
        await start(port=server.port)


async def test_a_host_that_does_not_exist_is_a_clear_error(start: Start) -> None:
    with pytest.raises(ConfigurationError, match=r"^--host 'nowhere\.invalid': "):
        await start(host="nowhere.invalid")


async def test_the_command_tells_of_a_taken_port_in_one_line(start: Start) -> None:
    taken = SimulatorOptions(port=(await start()).port)
    with pytest.raises(ConfigurationError, match=f"cannot listen on 127.0.0.1:{taken.port}"):
        await simulate([taken], announce=lambda server: None)


@pytest.mark.parametrize(
    "options",
    [
        {"time_scale": 0},
        {"time_scale": math.nan},
        {"cpu_tier": math.inf},
        {"max_num_seqs": 0},
        {"num_gpu_blocks": 1},
        {"num_gpu_blocks": 10**11},
        {"block_size": 0},
        {"api_servers": 0},
    ],
)
def test_an_impossible_option_is_named_by_its_flag(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ConfigurationError, match=f"^--{name.replace('_', '-')} must be "):
        SimulatorOptions(**options)


@pytest.mark.parametrize("options", [{"profile": "abacus"}, {"port": 65_536}])
def test_what_does_not_exist_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        SimulatorOptions(**options)


def test_faults_are_shares() -> None:
    with pytest.raises(ConfigurationError, match="fail_rate"):
        Faults(fail_rate=1.5)


async def test_the_command_runs_several_and_ends_on_a_signal() -> None:
    import sys

    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "warmroute", "simulate", "--port", "0", "--count", "2", "--model", MODEL,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            lines = [(await process.stdout.readline()).decode() for _ in range(2)]
        assert [line.split()[0] for line in lines] == [f"simulator-{line.strip().rpartition(':')[2]}" for line in lines]
        async with aiohttp.ClientSession() as session:
            for line in lines:
                async with session.get(line.split()[-1] + "/health") as response:
                    assert response.headers["x-simulator-name"] == line.split()[0]
        process.terminate()
        async with asyncio.timeout(60):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
