"""The simulated engine's ``/metrics`` page: vLLM's names, labels, help texts and buckets."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from warmroute_lab.simulator.engine import Engine
from warmroute_lab.simulator.profile import Profile
from warmroute_lab.simulator.request import Request

_TTFT_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
)  # fmt: skip
_TOKEN_TIME_BUCKETS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80,
)  # fmt: skip
_REQUEST_TIME_BUCKETS = (
    0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680,
)  # fmt: skip
_LENGTH_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000)

FIRST_PID = 271
"""Process id of the first of several API servers."""
_REASONS = ("stop", "length", "abort", "error", "repetition")
_Values = float | dict[str, float]
"""The value of a metric, or its values by a further label."""


class MetricsPage:
    """The metrics page of one engine. Times are wall-clock seconds: virtual seconds divided by the time scale."""

    def __init__(
        self,
        engine: Engine,
        model: str,
        *,
        started: float,
        time_scale: float,
        loras: bool,
        api_servers: int = 1,
        rank: int = 0,
    ) -> None:
        """``started`` is the Unix time of the start, in seconds. With several ``api_servers`` the page is that of
        prometheus_client in several processes: no start time, nothing behind the filter, and the KV cache utilization once
        for each process, of which one has it."""
        self._api_servers = api_servers
        self._scale = time_scale
        self._labels = {"engine": str(rank), "model_name": model}
        self._registry = CollectorRegistry()
        self._state = _EngineState(engine, self._labels, started=started, loras=loras, api_servers=api_servers)
        self._registry.register(self._state)
        success = self._counter(
            "vllm:request_success", "Count of successfully processed requests.", extra="finished_reason"
        )
        self._success = {reason: success.labels(**self._labels, finished_reason=reason) for reason in _REASONS}
        self._prompt = self._histogram(
            "vllm:request_prompt_tokens", "Number of prefill tokens processed.", _LENGTH_BUCKETS
        )
        self._generation = self._histogram(
            "vllm:request_generation_tokens", "Number of generation tokens processed.", _LENGTH_BUCKETS
        )
        self._ttft = self._histogram(
            "vllm:time_to_first_token_seconds", "Histogram of time to first token in seconds.", _TTFT_BUCKETS
        )
        self._itl = self._histogram(
            "vllm:inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", _TOKEN_TIME_BUCKETS
        )
        self._tpot = self._histogram(
            "vllm:request_time_per_output_token_seconds",
            "Histogram of time_per_output_token_seconds per request.",
            _TOKEN_TIME_BUCKETS,
        )
        self._e2e = self._histogram(
            "vllm:e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", _REQUEST_TIME_BUCKETS
        )
        phase = "Histogram of time spent in {} phase for request."
        self._queue, self._inference, self._prefill, self._decode = (
            self._histogram(f"vllm:request_{name}_time_seconds", phase.format(word), _REQUEST_TIME_BUCKETS)
            for name, word in (
                ("queue", "WAITING"),
                ("inference", "RUNNING"),
                ("prefill", "PREFILL"),
                ("decode", "DECODE"),
            )
        )
        self._computed = self._histogram(
            "vllm:request_prefill_kv_computed_tokens",
            "Histogram of new KV tokens computed during prefill (excluding cached tokens).",
            _LENGTH_BUCKETS,
        )

        self._responses = Counter(
            "http_requests",
            "Total number of requests by method, status and handler.",
            ["handler", "method", "status"],
            registry=self._registry,
        )

    def observe_response(self, handler: str, method: str, status: int) -> None:
        """An HTTP response ended. ``handler`` is the path of its route."""
        self._responses.labels(handler=handler, method=method, status=f"{status // 100}xx").inc()

    def observe_tokens(self, tokens: int, seconds: float) -> None:
        """A request got ``tokens`` more tokens, ``seconds`` of virtual time after the previous ones."""
        for _ in range(tokens):
            self._itl.observe(seconds / tokens / self._scale)

    def observe_first_token(self, request: Request) -> None:
        """A request got its first token."""
        assert request.first_token_at is not None
        self._ttft.observe((request.first_token_at - request.arrived_at) / self._scale)

    def observe_finished(self, request: Request, reason: str) -> None:
        """A request ended with its last token."""
        self._success[reason].inc()
        scheduled, first, end = request.scheduled_at, request.first_token_at, request.finished_at
        assert scheduled is not None
        assert first is not None
        assert end is not None
        self._prompt.observe(request.prompt_tokens)
        self._generation.observe(request.outputs)
        self._computed.observe(request.prompt_tokens - request.cached_tokens)
        for histogram, seconds in (
            (self._e2e, end - request.arrived_at),
            (self._queue, scheduled - request.queued_at),
            (self._inference, end - scheduled),
            (self._prefill, first - scheduled),
            (self._decode, end - first),
        ):
            histogram.observe(seconds / self._scale)
        if request.outputs > 1:
            self._tpot.observe((end - first) / (request.outputs - 1) / self._scale)

    def observe_aborted(self) -> None:
        """A client disconnected before its request finished."""
        self._success["abort"].inc()

    def slept(self, level: int) -> None:
        """The engine sleeps at this level, 1 or 2; 0: it is awake."""
        self._state.sleep_level = level

    def render(self, names: Sequence[str] = ()) -> bytes:
        """The page, or only the samples with these names."""
        if names and self._api_servers > 1:
            return b""
        return generate_latest(self._registry.restricted_registry(names) if names else self._registry)

    def _counter(self, name: str, text: str, *, extra: str) -> Counter:
        return Counter(name, text, [*self._labels, extra], registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(name, text, list(self._labels), registry=self._registry, buckets=buckets).labels(
            **self._labels
        )


class _EngineState(Collector):
    """Gauges and counters, read from the engine when the page is rendered."""

    def __init__(
        self, engine: Engine, labels: dict[str, str], *, started: float, loras: bool, api_servers: int
    ) -> None:
        self._engine, self._started, self._loras, self._api_servers = engine, started, loras, api_servers
        self.sleep_level = 0
        self._labels = labels

    def describe(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """The families, by which the registry finds the samples of a filtered page."""
        return self.collect()

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        if self._api_servers == 1 and self._labels["engine"] == "0":
            text = "Start time of the process since unix epoch in seconds."
            yield GaugeMetricFamily("process_start_time_seconds", text, value=self._started)
        yield from self._requests()
        yield from self._cache()
        yield from self._tokens()
        yield _cache_config(self._engine.profile, self._labels["engine"])
        if self._loras:
            yield self._lora_info()

    def _requests(self) -> Iterator[GaugeMetricFamily]:
        """The queues, and whether the engine sleeps."""
        engine = self._engine
        yield self._gauge("vllm:num_requests_running", "Number of requests in model execution batches.", engine.running)
        yield self._gauge("vllm:num_requests_waiting", "Number of requests waiting to be processed.", engine.waiting)
        yield self._gauge(
            "vllm:num_requests_waiting_by_reason",
            "Number of waiting requests by reason. Reason labels: 'capacity' = waiting for scheduling capacity; "
            "'deferred' = deferred by transient constraints (LoRA budget, KV transfer, blocked status). "
            "Sum of all reasons equals vllm:num_requests_waiting.",
            {"capacity": engine.waiting - engine.deferred, "deferred": engine.deferred},
            "reason",
        )
        yield self._gauge(
            "vllm:engine_sleep_state",
            "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is awake; "
            "weights_offloaded = 1 means sleep level 1; discard_all = 1 means sleep level 2.",
            {
                "awake": int(self.sleep_level == 0),
                "weights_offloaded": int(self.sleep_level == 1),
                "discard_all": int(self.sleep_level == 2),
            },
            "sleep_state",
        )

    def _cache(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """The KV cache and its second tier."""
        counters, usage = self._engine.counters, self._engine.kv_usage
        text = "KV-cache usage. 1 means 100 percent usage."
        if self._api_servers == 1:
            yield self._gauge("vllm:kv_cache_usage_perc", text, usage)
        else:
            by_process = {str(FIRST_PID + k): 0.0 for k in range(self._api_servers)}
            by_process[str(FIRST_PID + self._api_servers // 2)] = usage
            yield self._gauge("vllm:kv_cache_usage_perc", text, by_process, "pid")
        yield self._counter(
            "vllm:prefix_cache_queries",
            "Prefix cache queries, in terms of number of queried tokens.",
            counters.prefix_queries,
        )
        yield self._counter(
            "vllm:prefix_cache_hits", "Prefix cache hits, in terms of number of cached tokens.", counters.prefix_hits
        )
        tier = (
            "External prefix cache {} from KV connector cross-instance cache sharing, in terms of number of {} tokens."
        )
        yield self._counter(
            "vllm:external_prefix_cache_queries", tier.format("queries", "queried"), counters.tier_queries
        )
        yield self._counter("vllm:external_prefix_cache_hits", tier.format("hits", "cached"), counters.tier_hits)

    def _tokens(self) -> Iterator[CounterMetricFamily]:
        """Preemptions, and tokens of prompts and answers."""
        counters = self._engine.counters
        yield self._counter(
            "vllm:num_preemptions", "Cumulative number of preemption from the engine.", counters.preemptions
        )
        yield self._counter("vllm:prompt_tokens", "Number of prefill tokens processed.", counters.prompt_tokens)
        yield self._counter(
            "vllm:prompt_tokens_by_source",
            "Number of prompt tokens by source.",
            {
                "local_compute": counters.prompt_tokens - counters.cached_tokens,
                "local_cache_hit": counters.cached_tokens,
                "external_kv_transfer": 0,
            },
            "source",
        )
        yield self._counter(
            "vllm:prompt_tokens_cached", "Number of cached prompt tokens (local + external).", counters.cached_tokens
        )
        yield self._counter(
            "vllm:generation_tokens", "Number of generation tokens processed.", counters.generation_tokens
        )

    def _gauge(self, name: str, text: str, values: _Values, label: str | None = None) -> GaugeMetricFamily:
        family = GaugeMetricFamily(name, text, labels=self._names_with(label))
        for labels, value in self._samples(values):
            family.add_metric(labels, value)
        return family

    def _counter(self, name: str, text: str, values: _Values, label: str | None = None) -> CounterMetricFamily:
        family = CounterMetricFamily(name, text, labels=self._names_with(label))
        for labels, value in self._samples(values):
            family.add_metric(labels, value, created=self._started)
        return family

    def _names_with(self, label: str | None) -> list[str]:
        return [*self._labels] if label is None else [*self._labels, label]

    def _samples(self, values: _Values) -> Iterator[tuple[list[str], float]]:
        own = list(self._labels.values())
        if isinstance(values, dict):
            yield from (([*own, key], value) for key, value in values.items())
        else:
            yield own, values

    def _lora_info(self) -> GaugeMetricFamily:
        engine = self._engine
        family = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Running stats on lora requests.",
            labels=["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
        )
        running, waiting = ",".join(engine.running_adapters), ",".join(engine.waiting_adapters)
        family.add_metric([str(engine.profile.max_loras), running, waiting], time.time())
        return family


def _cache_config(profile: Profile, rank: str) -> GaugeMetricFamily:
    values = {
        "_block_size_resolved": "True",
        "block_size": str(profile.block_size),
        "cache_dtype": "auto",
        "calculate_kv_scales": "False",
        "enable_prefix_caching": str(profile.prefix_caching),
        "engine": rank,
        "gpu_memory_utilization": "0.9",
        "is_attention_free": "False",
        "kv_cache_dtype_skip_layers": "[]",
        "kv_cache_max_concurrency": str(profile.kv_cache_tokens / profile.max_model_len),
        "kv_cache_memory_bytes": "None",
        "kv_cache_size_tokens": str(profile.kv_cache_tokens),
        "num_cpu_blocks": "None",
        "num_gpu_blocks": str(profile.num_gpu_blocks),
        "num_gpu_blocks_override": "None",
        "prefix_caching_hash_algo": "sha256",
        "sliding_window": "None",
    }
    family = GaugeMetricFamily(
        "vllm:cache_config_info", "Information of the LLMEngine CacheConfig", labels=list(values)
    )
    family.add_metric(list(values.values()), 1.0)
    return family
