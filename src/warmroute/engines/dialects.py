"""The metric names of each engine, as data.

Sources:

* vLLM: https://docs.vllm.ai/en/latest/usage/metrics.html and ``vllm/v1/metrics/loggers.py``, at 0.26. The names with
  ``gpu_`` and ``vllm:time_per_output_token_seconds`` are those of older releases.
* SGLang: https://docs.sglang.ai/references/production_metrics.html and ``python/sglang/srt/metrics/collector.py``.
* trtllm-serve: ``tensorrt_llm/metrics/collector.py`` of https://github.com/NVIDIA/TensorRT-LLM; it serves JSON on
  ``/metrics`` and Prometheus' format on ``/prometheus/metrics``.
* Triton with TensorRT-LLM: https://github.com/triton-inference-server/tensorrtllm_backend, "Triton Metrics".
* Queue, running, KV cache, block counts and LoRA: the model server protocol of the Gateway API inference extension,
  https://github.com/kubernetes-sigs/gateway-api-inference-extension/tree/main/docs/proposals/003-model-server-protocol.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import Any

PROCESS_START_TIME = "process_start_time_seconds"
"""Exported by every Prometheus client library in a single process; absent in multi-process mode."""


@dataclass(frozen=True, slots=True)
class Series:
    """Where one figure stands on a metrics page.

    ``where`` lists the label values that a sample must have; as in Prometheus, an empty value also matches an absent label.
    The figure is the value of the sample, or the content of its label ``label``. Samples that differ only in the labels
    ``replicas`` report one figure several times: the largest counts.
    """

    name: str
    where: tuple[tuple[str, str], ...] = ()
    label: str | None = None
    replicas: tuple[str, ...] = ()

    def names(self) -> tuple[str, ...]:
        """Sample names to ask for."""
        return (self.name,)


@dataclass(frozen=True, slots=True)
class Capacity:
    """KV-cache size: ``count`` blocks of ``size`` tokens; without ``size`` the count is in tokens."""

    count: Series
    size: Series | None = None

    def names(self) -> tuple[str, ...]:
        """Sample names to ask for."""
        return (self.count.name,) if self.size is None else (self.count.name, self.size.name)


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """A series whose labels list the LoRA adapters in use. Its value grows while its label set is in use.

    In one process the value is the Unix time of the last use; with several API server processes it is the sum of theirs.
    ``loaded`` is a series with one sample for each adapter that the engine holds, in use or not: 1 while it is there, its
    name in the label ``adapter``.
    """

    name: str
    running: str
    waiting: str
    limit: str
    loaded: str
    adapter: str
    on_gpu: tuple[tuple[str, str], ...] = ()
    """Labels of the samples of ``loaded`` that need no loading before use."""

    def names(self) -> tuple[str, ...]:
        """Sample names to ask for."""
        return (self.name, self.loaded)


class Kind(Enum):
    """How a figure changes."""

    GAUGE = "up and down"
    COUNTER = "up; back to 0 with a new process"
    CONSTANT = "never while the process lives"


def _figure(kind: Kind) -> Any:
    return field(default=(), metadata={"kind": kind})


@dataclass(frozen=True, slots=True)
class Dialect:
    """The names of one engine. Of several alternatives the first one on the page counts; empty: not exported.

    Each field made by :func:`_figure` is one figure. The names to ask for and the counters are derived from these fields.
    """

    waiting: tuple[Series, ...] = _figure(Kind.GAUGE)
    """Requests queued. Required."""
    running: tuple[Series, ...] = _figure(Kind.GAUGE)
    """Requests in execution. Required."""
    kv_usage: tuple[Series, ...] = _figure(Kind.GAUGE)
    """KV cache utilization, 0 to 1."""
    awake: tuple[Series, ...] = _figure(Kind.GAUGE)
    """1 while the engine is awake, 0 while it sleeps."""
    capacity: tuple[Capacity, ...] = _figure(Kind.CONSTANT)
    """Size of the KV cache."""
    max_num_seqs: tuple[Series, ...] = _figure(Kind.CONSTANT)
    """Most requests that run at once."""
    max_concurrency: tuple[Series, ...] = _figure(Kind.CONSTANT)
    """Size of the KV cache divided by the longest request (``max_model_len``)."""
    block_size: tuple[Series, ...] = _figure(Kind.CONSTANT)
    """Tokens in a block of the KV cache: prompts are found in whole blocks."""
    prefix_caching: tuple[Series, ...] = _figure(Kind.CONSTANT)
    """Whether the engine keeps prompts: a label with the text ``True`` or ``False``."""
    tier_tokens: tuple[Series, ...] = _figure(Kind.CONSTANT)
    """Tokens that a second tier of the KV cache holds (host memory), copies of the first tier included."""
    prompt_tokens: tuple[Series, ...] = _figure(Kind.COUNTER)
    """Prompt tokens of finished requests, cached ones included."""
    prompt_requests: tuple[Series, ...] = _figure(Kind.COUNTER)
    """Finished requests, those that ``prompt_tokens`` counts."""
    computed_tokens: tuple[Series, ...] = _figure(Kind.COUNTER)
    """Prompt tokens computed rather than taken from a cache, counted as they are computed."""
    first_tokens: tuple[Series, ...] = _figure(Kind.COUNTER)
    """Requests that got their first token, counted at that moment; ``prompt_requests`` counts each of them when it ends.

    vLLM only: TensorRT-LLM counts them when they end, SGLang some tokens late for answers that do not stream."""
    first_token_seconds: tuple[Series, ...] = _figure(Kind.COUNTER)
    """Times to first token in seconds, summed over ``first_tokens``."""
    request_computed_tokens: tuple[Series, ...] = _figure(Kind.COUNTER)
    """Prompt tokens computed for finished requests."""
    request_prefill_seconds: tuple[Series, ...] = _figure(Kind.COUNTER)
    """Seconds from first step to first token, summed over finished requests."""
    later_tokens: tuple[Series, ...] = _figure(Kind.COUNTER)
    """Output tokens after the first one of each answer."""
    later_token_seconds: tuple[Series, ...] = _figure(Kind.COUNTER)
    """Inter-token latencies in seconds, summed over ``later_tokens``."""
    prefix_queries: tuple[Series, ...] = _figure(Kind.COUNTER)
    """Prompt tokens looked up in the prefix cache."""
    prefix_hits: tuple[Series, ...] = _figure(Kind.COUNTER)
    """Prompt tokens found in the prefix cache."""
    external_queries: tuple[Series, ...] = _figure(Kind.COUNTER)
    """Prompt tokens looked up in a cache outside the GPU (LMCache, CPU offloading), after those found on the GPU."""
    external_hits: tuple[Series, ...] = _figure(Kind.COUNTER)
    """Prompt tokens found there; ``prefix_hits`` does not count them."""
    responses: tuple[Series, ...] = _figure(Kind.COUNTER)
    """HTTP responses to POST requests, of any status."""
    rejected_responses: tuple[Series, ...] = _figure(Kind.COUNTER)
    """HTTP responses to POST requests with a status of 400 to 499."""
    failed_responses: tuple[Series, ...] = _figure(Kind.COUNTER)
    """HTTP responses to POST requests with a status of 500 to 599."""
    adapters: AdapterInfo | None = field(default=None, metadata={"kind": Kind.GAUGE})
    """LoRA adapters in use."""
    late: tuple[str, ...] = ()
    """Counters whose series appear only when they first count something: 0 until then."""
    prefix: str = ""
    """Beginning of the engine's own metric names."""
    rank_label: str | None = None
    """Label with the number of a data-parallel engine behind the port, if the server obeys ``X-data-parallel-rank``."""
    models_path: str | None = "/v1/models"
    """Path of the list of models that the engine serves; None if it has none."""
    path: str = "/metrics"
    """Path of the metrics page unless one is configured."""

    def renamed(self, prefix: str) -> Dialect:
        """The dialect of an engine whose metric names begin with ``prefix`` in place of :attr:`prefix`.

        Ray Serve exports vLLM's metrics as ``ray_vllm:...`` (later releases: ``ray_vllm_...``).
        """

        def renamed(name: str) -> str:
            return prefix + name.removeprefix(self.prefix) if name.startswith(self.prefix) else name

        def series(value: Series) -> Series:
            return replace(value, name=renamed(value.name))

        def figure(value: Series | Capacity) -> Series | Capacity:
            if isinstance(value, Series):
                return series(value)
            return Capacity(series(value.count), None if value.size is None else series(value.size))

        changes: dict[str, Any] = {
            name: tuple(map(figure, value))
            for name in _fields(*Kind)
            if isinstance(value := getattr(self, name), tuple)
        }
        if self.adapters is not None:
            info = self.adapters
            changes["adapters"] = replace(info, name=renamed(info.name), loaded=renamed(info.loaded))
        return replace(self, **changes, prefix=prefix)

    def changing_names(self) -> tuple[str, ...]:
        """Sample names that every scrape needs."""
        return tuple(dict.fromkeys((*self._names(Kind.GAUGE, Kind.COUNTER), PROCESS_START_TIME)))

    def constant_names(self) -> tuple[str, ...]:
        """Sample names of the figures that never change during an engine's life."""
        return tuple(dict.fromkeys(self._names(Kind.CONSTANT)))

    def counters(self) -> dict[str, tuple[Series, ...]]:
        """The counters by field name."""
        return {name: getattr(self, name) for name in _fields(Kind.COUNTER)}

    def _names(self, *kinds: Kind) -> Iterator[str]:
        for name in _fields(*kinds):
            value = getattr(self, name)
            for figure in value if isinstance(value, tuple) else filter(None, (value,)):
                yield from figure.names()


def _fields(*kinds: Kind) -> list[str]:
    return [each.name for each in fields(Dialect) if each.metadata.get("kind") in kinds]


_VLLM_CACHE_CONFIG = "vllm:cache_config_info"
_SGLANG_CACHE_CONFIG = "sglang:cache_config_info"
_ALL_PRIORITIES = (("priority", ""),)
"""SGLang repeats some series per priority; the one without a priority is the total."""
_SGLANG_RANKS = ("pp_rank", "tp_rank", "moe_ep_rank")
"""Labels of ranks that work on one set of requests. With pipeline parallelism each of them exports the figure."""
_PROCESSES = ("pid",)
"""Label of API server processes. prometheus_client adds it to a gauge that declares no mode for several
processes (``vllm:kv_cache_usage_perc`` until https://github.com/vllm-project/vllm/pull/28792). An engine sends its figures
to one process; the others export 0 or old figures."""
_TRITON_REQUESTS = "nv_trt_llm_request_metrics"
_TRITON_BLOCKS = "nv_trt_llm_kv_cache_block_metrics"

VLLM = Dialect(
    waiting=(Series("vllm:num_requests_waiting", replicas=_PROCESSES),),
    running=(Series("vllm:num_requests_running", replicas=_PROCESSES),),
    kv_usage=(
        Series("vllm:kv_cache_usage_perc", replicas=_PROCESSES),
        Series("vllm:gpu_cache_usage_perc", replicas=_PROCESSES),
    ),
    capacity=(
        Capacity(Series(_VLLM_CACHE_CONFIG, label="kv_cache_size_tokens", replicas=_PROCESSES)),
        Capacity(
            Series(_VLLM_CACHE_CONFIG, label="num_gpu_blocks", replicas=_PROCESSES),
            size=Series(_VLLM_CACHE_CONFIG, label="block_size"),
        ),
    ),
    max_concurrency=(Series(_VLLM_CACHE_CONFIG, label="kv_cache_max_concurrency", replicas=_PROCESSES),),
    block_size=(Series(_VLLM_CACHE_CONFIG, label="block_size"),),
    prefix_caching=(Series(_VLLM_CACHE_CONFIG, label="enable_prefix_caching"),),
    prompt_tokens=(Series("vllm:request_prompt_tokens_sum"),),
    prompt_requests=(Series("vllm:request_prompt_tokens_count"),),
    computed_tokens=(
        Series("vllm:prompt_tokens_by_source_total", where=(("source", "local_compute"),)),
        Series("vllm:request_prefill_kv_computed_tokens_sum"),
    ),
    first_tokens=(Series("vllm:time_to_first_token_seconds_count"),),
    first_token_seconds=(Series("vllm:time_to_first_token_seconds_sum"),),
    request_computed_tokens=(Series("vllm:request_prefill_kv_computed_tokens_sum"),),
    request_prefill_seconds=(Series("vllm:request_prefill_time_seconds_sum"),),
    later_tokens=(
        Series("vllm:inter_token_latency_seconds_count"),
        Series("vllm:time_per_output_token_seconds_count"),
    ),
    later_token_seconds=(
        Series("vllm:inter_token_latency_seconds_sum"),
        Series("vllm:time_per_output_token_seconds_sum"),
    ),
    prefix_queries=(Series("vllm:prefix_cache_queries_total"), Series("vllm:gpu_prefix_cache_queries_total")),
    prefix_hits=(Series("vllm:prefix_cache_hits_total"), Series("vllm:gpu_prefix_cache_hits_total")),
    external_queries=(Series("vllm:external_prefix_cache_queries_total"),),
    external_hits=(Series("vllm:external_prefix_cache_hits_total"),),
    responses=(Series("http_requests_total", where=(("method", "POST"),)),),
    rejected_responses=(Series("http_requests_total", where=(("method", "POST"), ("status", "4xx"))),),
    failed_responses=(Series("http_requests_total", where=(("method", "POST"), ("status", "5xx"))),),
    awake=(Series("vllm:engine_sleep_state", where=(("sleep_state", "awake"),), replicas=_PROCESSES),),
    adapters=AdapterInfo(
        "vllm:lora_requests_info",
        running="running_lora_adapters",
        waiting="waiting_lora_adapters",
        limit="max_lora",
        loaded="vllm:lora_adapter_loaded",
        adapter="adapter_name",
        on_gpu=(("level", "gpu"),),
    ),
    prefix="vllm:",
    rank_label="engine",
)

SGLANG = Dialect(
    waiting=(Series("sglang:num_queue_reqs", where=_ALL_PRIORITIES, replicas=_SGLANG_RANKS),),
    running=(Series("sglang:num_running_reqs", where=_ALL_PRIORITIES, replicas=_SGLANG_RANKS),),
    kv_usage=(Series("sglang:token_usage", replicas=_SGLANG_RANKS),),
    capacity=(
        Capacity(Series("sglang:max_total_num_tokens", replicas=_SGLANG_RANKS)),
        Capacity(
            Series(_SGLANG_CACHE_CONFIG, label="num_pages", replicas=_SGLANG_RANKS),
            size=Series(_SGLANG_CACHE_CONFIG, label="page_size"),
        ),
    ),
    block_size=(Series(_SGLANG_CACHE_CONFIG, label="page_size"),),
    tier_tokens=(Series("sglang:hicache_host_total_tokens", replicas=_SGLANG_RANKS),),
    prompt_tokens=(Series("sglang:prompt_tokens_total"),),
    prompt_requests=(Series("sglang:num_requests_total"),),
    computed_tokens=(
        Series(
            "sglang:realtime_tokens_total",
            where=(("mode", "prefill_compute"), *_ALL_PRIORITIES),
            replicas=_SGLANG_RANKS,
        ),
    ),
    later_tokens=(Series("sglang:inter_token_latency_seconds_count"),),
    later_token_seconds=(Series("sglang:inter_token_latency_seconds_sum"),),
    prefix_queries=(Series("sglang:prompt_tokens_total"),),
    prefix_hits=(Series("sglang:cached_tokens_total"),),
    late=("prefix_hits",),
    prefix="sglang:",
)

TRTLLM_SERVE = Dialect(
    waiting=(Series("trtllm_num_requests_waiting"),),
    running=(Series("trtllm_num_requests_running"),),
    kv_usage=(Series("trtllm_kv_cache_utilization"),),
    capacity=(Capacity(Series("trtllm_kv_cache_max_blocks"), size=Series("trtllm_kv_cache_tokens_per_block")),),
    block_size=(Series("trtllm_kv_cache_tokens_per_block"),),
    max_num_seqs=(Series("trtllm_max_num_active_requests"),),
    prompt_tokens=(Series("trtllm_prompt_tokens_total"),),
    prompt_requests=(Series("trtllm_request_success_total"),),
    prefix_queries=(Series("trtllm_prompt_tokens_total"),),
    prefix_hits=(Series("trtllm_prompt_cached_tokens_total"),),
    path="/prometheus/metrics",
    prefix="trtllm_",
)

TRITON_TENSORRT_LLM = Dialect(
    waiting=(Series(_TRITON_REQUESTS, where=(("request_type", "waiting"),)),),
    running=(Series(_TRITON_REQUESTS, where=(("request_type", "scheduled"),)),),
    kv_usage=(Series(_TRITON_BLOCKS, where=(("kv_cache_block_type", "fraction"),)),),
    capacity=(
        Capacity(
            Series(_TRITON_BLOCKS, where=(("kv_cache_block_type", "max"),)),
            size=Series(_TRITON_BLOCKS, where=(("kv_cache_block_type", "tokens_per"),)),
        ),
    ),
    block_size=(Series(_TRITON_BLOCKS, where=(("kv_cache_block_type", "tokens_per"),)),),
    max_num_seqs=(Series(_TRITON_REQUESTS, where=(("request_type", "max"),)),),
    prefix="nv_trt_llm_",
    models_path=None,
)

DIALECTS: Mapping[str, Dialect] = {
    "vllm": VLLM,
    "sglang": SGLANG,
    "trtllm-serve": TRTLLM_SERVE,
    "triton-tensorrt-llm": TRITON_TENSORRT_LLM,
    "trt-llm": TRITON_TENSORRT_LLM,  # its name in the pool annotation of Alibaba Cloud's Kubernetes
}
"""The dialects by name, as in the setting ``model_server_runtime`` and the pods' engine label."""
