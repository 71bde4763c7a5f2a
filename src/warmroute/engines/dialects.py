"""The engines' metric names, as data: what each calls the figures that Warmroute reads.

Sources: the model server protocol of the Gateway API inference extension (queue, running, KV cache, block counts, LoRA)
and the engines' own pages for the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

PROCESS_START_TIME = "process_start_time_seconds"
"""Exported by every Prometheus client that runs in one process; absent in multi-process mode."""


@dataclass(frozen=True, slots=True)
class Series:
    """Where one figure stands on a metrics page.

    ``where`` lists the label values that a sample must have; as in Prometheus, an empty value also matches an absent
    label. The figure is the sample's value, or the content of its label ``label``. Of samples that differ in the labels
    ``replicas`` only, the largest counts: they say the same of the same requests.
    """

    name: str
    where: tuple[tuple[str, str], ...] = ()
    label: str | None = None
    replicas: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Capacity:
    """KV-cache size: ``count`` blocks of ``size`` tokens; without ``size`` the count is in tokens already."""

    count: Series
    size: Series | None = None


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """A series whose labels name the LoRA adapters in use; its value is the time of the label set's last use."""

    name: str
    running: str
    waiting: str
    limit: str


@dataclass(frozen=True, slots=True)
class Dialect:
    """One engine's names. Of several alternatives the first that the page has counts; an empty tuple is "not told"."""

    waiting: tuple[Series, ...]
    """Requests queued. Required."""
    running: tuple[Series, ...]
    """Requests in execution. Required."""
    kv_usage: tuple[Series, ...]
    """Share of the KV cache that requests hold, 0 to 1."""
    capacity: tuple[Capacity, ...]
    max_num_seqs: tuple[Series, ...] = ()
    """Most requests that run at once."""
    prompt_tokens: tuple[Series, ...] = ()
    """Counter: prompt tokens, cached ones included."""
    prompt_requests: tuple[Series, ...] = ()
    """Counter: the requests that ``prompt_tokens`` counts."""
    computed_tokens: tuple[Series, ...] = ()
    """Counter: prompt tokens that were computed, not taken from a cache."""
    first_tokens: tuple[Series, ...] = ()
    """Counter: requests that got their first token, counted then, each of which ``prompt_requests`` counts at its end.

    TensorRT-LLM counts them when they end, SGLang some tokens late where the answer is not streamed: neither is of use."""
    request_computed_tokens: tuple[Series, ...] = ()
    """Counter: the same, of finished requests."""
    request_prefill_seconds: tuple[Series, ...] = ()
    """Counter: time from first step to first token, of the same requests."""
    later_tokens: tuple[Series, ...] = ()
    """Counter: tokens generated after the first one of their answer."""
    later_token_seconds: tuple[Series, ...] = ()
    """Counter: the time of each of these since the token before it."""
    prefix_queries: tuple[Series, ...] = ()
    """Counter: prompt tokens looked up in the prefix cache."""
    prefix_hits: tuple[Series, ...] = ()
    """Counter: prompt tokens found in the prefix cache."""
    awake: tuple[Series, ...] = ()
    """1 while the engine is awake, 0 while it sleeps."""
    adapters: AdapterInfo | None = None
    path: str = "/metrics"
    """Where the engine serves its page unless the user says otherwise."""

    def changing_names(self) -> tuple[str, ...]:
        """Sample names that every scrape needs."""
        return tuple(dict.fromkeys((*self._changing(), PROCESS_START_TIME)))

    def constant_names(self) -> tuple[str, ...]:
        """Sample names whose figures stay the same for an engine's life."""
        return tuple(dict.fromkeys(self._constant()))

    def _changing(self) -> Iterator[str]:
        for alternatives in (
            self.waiting,
            self.running,
            self.kv_usage,
            self.prompt_tokens,
            self.prompt_requests,
            self.computed_tokens,
            self.first_tokens,
            self.request_computed_tokens,
            self.request_prefill_seconds,
            self.later_tokens,
            self.later_token_seconds,
            self.prefix_queries,
            self.prefix_hits,
            self.awake,
        ):
            yield from (series.name for series in alternatives)
        if self.adapters is not None:
            yield self.adapters.name

    def _constant(self) -> Iterator[str]:
        for capacity in self.capacity:
            yield capacity.count.name
            if capacity.size is not None:
                yield capacity.size.name
        yield from (series.name for series in self.max_num_seqs)


_VLLM_CACHE_CONFIG = "vllm:cache_config_info"
_SGLANG_CACHE_CONFIG = "sglang:cache_config_info"
_ALL_PRIORITIES = (("priority", ""),)
"""SGLang repeats some series for each priority; the one without a priority is their total."""
_SGLANG_RANKS = ("pp_rank", "tp_rank", "moe_ep_rank")
"""Ranks that work on the same requests: with pipeline parallelism, or all schedulers reporting, each tells of them."""
_TRITON_REQUESTS = "nv_trt_llm_request_metrics"
_TRITON_BLOCKS = "nv_trt_llm_kv_cache_block_metrics"

VLLM = Dialect(
    waiting=(Series("vllm:num_requests_waiting"),),
    running=(Series("vllm:num_requests_running"),),
    kv_usage=(Series("vllm:kv_cache_usage_perc"), Series("vllm:gpu_cache_usage_perc")),
    capacity=(
        Capacity(Series(_VLLM_CACHE_CONFIG, label="kv_cache_size_tokens")),
        Capacity(
            Series(_VLLM_CACHE_CONFIG, label="num_gpu_blocks"),
            size=Series(_VLLM_CACHE_CONFIG, label="block_size"),
        ),
    ),
    prompt_tokens=(Series("vllm:request_prompt_tokens_sum"),),
    prompt_requests=(Series("vllm:request_prompt_tokens_count"),),
    computed_tokens=(
        Series("vllm:prompt_tokens_by_source_total", where=(("source", "local_compute"),)),
        Series("vllm:request_prefill_kv_computed_tokens_sum"),
    ),
    first_tokens=(Series("vllm:time_to_first_token_seconds_count"),),
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
    awake=(Series("vllm:engine_sleep_state", where=(("sleep_state", "awake"),)),),
    adapters=AdapterInfo(
        "vllm:lora_requests_info",
        running="running_lora_adapters",
        waiting="waiting_lora_adapters",
        limit="max_lora",
    ),
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
)

TRTLLM_SERVE = Dialect(
    waiting=(Series("trtllm_num_requests_waiting"),),
    running=(Series("trtllm_num_requests_running"),),
    kv_usage=(Series("trtllm_kv_cache_utilization"),),
    capacity=(Capacity(Series("trtllm_kv_cache_max_blocks"), size=Series("trtllm_kv_cache_tokens_per_block")),),
    max_num_seqs=(Series("trtllm_max_num_active_requests"),),
    prompt_tokens=(Series("trtllm_prompt_tokens_total"),),
    prompt_requests=(Series("trtllm_request_success_total"),),
    prefix_queries=(Series("trtllm_prompt_tokens_total"),),
    prefix_hits=(Series("trtllm_prompt_cached_tokens_total"),),
    path="/prometheus/metrics",
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
    max_num_seqs=(Series(_TRITON_REQUESTS, where=(("request_type", "max"),)),),
)

DIALECTS: Mapping[str, Dialect] = {
    "vllm": VLLM,
    "sglang": SGLANG,
    "trtllm-serve": TRTLLM_SERVE,
    "triton-tensorrt-llm": TRITON_TENSORRT_LLM,
    "trt-llm": TRITON_TENSORRT_LLM,  # what Alibaba Cloud's Kubernetes calls it in the pool's annotation
}
"""The dialects by the name that the setting ``model_server_runtime`` and the pods' engine label use."""
