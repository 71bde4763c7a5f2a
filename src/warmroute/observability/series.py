"""The catalogue of exported metrics: every name, type, label, unit and meaning, once. docs/metrics.md shows this table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from prometheus_client import Metric
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

OTHER = "other"
"""Label value that stands for all values beyond a series' bound."""
SAMPLES_AT_ONCE = 200
"""Samples of a part: it takes about 1 ms to make and to encode."""

Sample = tuple[tuple[str, ...], float]
"""Label values, in the order of ``MetricFamily.labels``, and the value."""


@dataclass(frozen=True, slots=True)
class MetricFamily:
    """One metric as Prometheus sees it; ``name`` as exported, so counters end in ``_total`` and infos in ``_info``."""

    name: str
    type: Literal["counter", "gauge", "histogram", "info"]
    unit: str
    meaning: str
    labels: tuple[str, ...] = ()

    def family(self, samples: Iterable[Sample]) -> Metric:
        """The metric with these samples. Not for histograms."""
        if self.type == "info":
            info = InfoMetricFamily(self.name.removesuffix("_info"), self.meaning)
            for values, _ in samples:
                info.add_metric((), dict(zip(self.labels, values, strict=True)))
            return info
        of_type = CounterMetricFamily if self.type == "counter" else GaugeMetricFamily
        family = of_type(self.name, self.meaning, labels=self.labels)
        for values, value in samples:
            family.add_metric(values, value)
        return family

    def parts(self, samples: Iterable[Sample]) -> Iterator[Metric]:
        """The metric as several with at most :data:`SAMPLES_AT_ONCE` samples each, made one by one; at least one."""
        rest = iter(samples)
        part = list(islice(rest, SAMPLES_AT_ONCE))
        while True:
            yield self.family(part)
            part = list(islice(rest, SAMPLES_AT_ONCE))
            if not part:
                return


_CATALOGUE: list[MetricFamily] = []


def _series(
    name: str,
    kind: Literal["counter", "gauge", "histogram", "info"],
    unit: str,
    meaning: str,
    labels: tuple[str, ...] = (),
) -> MetricFamily:
    """Declare a series: it joins the catalogue."""
    series = MetricFamily(name, kind, unit, meaning, labels)
    _CATALOGUE.append(series)
    return series


# Traffic
REQUESTS = _series(
    "warmroute_requests_total",
    "counter",
    "requests",
    "Requests answered, by model; empty: no model named; other: never routed, or no free place among 200 names.",
    ("model",),
)
REQUEST_ERRORS = _series(
    "warmroute_request_errors_total",
    "counter",
    "requests",
    "Requests answered with an error instead of an endpoint.",
    ("reason", "status"),
)
STREAMS_IN_FLIGHT = _series("warmroute_streams_in_flight", "gauge", "streams", "ext_proc streams open now.")
STREAMS_LIMIT = _series("warmroute_streams_limit", "gauge", "streams", "Most streams open at once (--max-streams).")
STREAMS_BROKEN = _series(
    "warmroute_streams_broken_total",
    "counter",
    "streams",
    "Streams ended by an error: protocol-error: of the proxy; internal: a bug of the picker (see its log).",
    ("reason",),
)
STREAMS_REFUSED = _series(
    "warmroute_streams_refused_total",
    "counter",
    "streams",
    "Streams ended before their first message: max-streams: --max-streams were open; not-synced: the endpoints are not "
    "known yet, or another picker leads.",
    ("reason",),
)
RESPONSES = _series(
    "warmroute_responses_total",
    "counter",
    "responses",
    "Responses by HTTP status, as far as the gateway shows them: with --observe-responses, or where they stream through.",
    ("status",),
)
BODY_BYTES = _series(
    "warmroute_request_body_bytes", "histogram", "bytes", "Size of the request bodies that were routed."
)
PROMPT_TOKENS = _series(
    "warmroute_prompt_tokens_total",
    "counter",
    "tokens",
    "Tokens of the prompts that were matched, estimated from their bytes.",
)
MATCHED_TOKENS = _series(
    "warmroute_matched_tokens_total",
    "counter",
    "tokens",
    "Prompt tokens that the chosen endpoint already held; divided by the prompt tokens this is the expected hit ratio.",
)
RANDOM_MATCHED_TOKENS = _series(
    "warmroute_random_matched_tokens_total",
    "counter",
    "tokens",
    "Prompt tokens that a candidate chosen at random would have held: the mean over the candidates of each request.",
)

# The arms of a holdout (--holdout): "strategy" and "holdout"
ARM_REQUESTS = _series(
    "warmroute_arm_requests_total", "counter", "requests", "Requests of each arm while --holdout is on.", ("arm",)
)
ARM_PROMPT_TOKENS = _series(
    "warmroute_arm_prompt_tokens_total", "counter", "tokens", "Prompt tokens of each arm, estimated.", ("arm",)
)
ARM_MATCHED_TOKENS = _series(
    "warmroute_arm_matched_tokens_total",
    "counter",
    "tokens",
    "Of these, tokens that the chosen endpoint already held: prefill tokens saved. The quotient is the arm's hit ratio.",
    ("arm",),
)
ARM_PREDICTED_SECONDS = _series(
    "warmroute_arm_predicted_ttft_seconds_total",
    "counter",
    "seconds",
    "Predicted times to first token of the arm's requests, summed.",
    ("arm",),
)
ARM_RESPONSES = _series(
    "warmroute_arm_responses_total",
    "counter",
    "responses",
    "Responses of each arm with a status below 400, with --observe-responses.",
    ("arm",),
)
ARM_HEADERS_SECONDS = _series(
    "warmroute_arm_response_headers_seconds_total",
    "counter",
    "seconds",
    "Seconds from the decision to the headers of these responses, summed. Streaming engines send them before any token.",
    ("arm",),
)
ARM_RESPONSE_SECONDS = _series(
    "warmroute_arm_response_seconds_total",
    "counter",
    "seconds",
    "Seconds from the decision to the end of these responses, summed.",
    ("arm",),
)

# Picks
DECISIONS = _series(
    "warmroute_decisions_total",
    "counter",
    "requests",
    "Endpoints chosen, by strategy and reason.",
    ("strategy", "reason"),
)
STRATEGY_FAILURES = _series(
    "warmroute_strategy_failures_total",
    "counter",
    "requests",
    "Requests for which a custom strategy failed, so that PREFIX_CACHE chose.",
    ("strategy",),
)
PICKS = _series(
    "warmroute_picks_total", "counter", "requests", "Requests sent to the endpoint since it joined.", ("endpoint",)
)
MATCH_RATIO = _series(
    "warmroute_match_ratio",
    "histogram",
    "ratio",
    "Share of each prompt that the chosen endpoint held, 0 to 1; only requests whose prompt was matched.",
)
PICK_SECONDS = _series(
    "warmroute_pick_seconds", "histogram", "seconds", "Time to match the prompt and to choose the endpoint."
)
PROCESSING_SECONDS = _series(
    "warmroute_request_processing_seconds",
    "histogram",
    "seconds",
    "Time that the picker itself worked on a request, all its messages together.",
)

# Endpoints
ENDPOINTS = _series(
    "warmroute_endpoints",
    "gauge",
    "endpoints",
    "Members of the pool: ready; unreachable: its engine does not answer; ejected: passive health keeps it out; "
    "sleeping: its engine sleeps; gone: dropped by discovery, remembered for a minute.",
    ("state",),
)
WAITING = _series(
    "warmroute_endpoint_waiting_requests",
    "gauge",
    "requests",
    "Requests waiting for their first token, as the router estimates it.",
    ("endpoint",),
)
RUNNING = _series(
    "warmroute_endpoint_running_requests",
    "gauge",
    "requests",
    "Requests being decoded, as the router estimates it.",
    ("endpoint",),
)
PENDING_TOKENS = _series(
    "warmroute_endpoint_pending_prefill_tokens",
    "gauge",
    "tokens",
    "Prompt tokens assigned and not prefilled yet, as the router estimates it.",
    ("endpoint",),
)
ENGINE_WAITING = _series(
    "warmroute_endpoint_engine_waiting_requests",
    "gauge",
    "requests",
    "Requests waiting, as of the engine's last metrics page.",
    ("endpoint",),
)
ENGINE_RUNNING = _series(
    "warmroute_endpoint_engine_running_requests",
    "gauge",
    "requests",
    "Requests running, as of the engine's last metrics page.",
    ("endpoint",),
)
KV_USAGE = _series(
    "warmroute_endpoint_kv_usage_ratio",
    "gauge",
    "ratio",
    "Share of the KV cache that requests reference, 0 to 1, as of the engine's last metrics page.",
    ("endpoint",),
)
SLOWNESS = _series(
    "warmroute_endpoint_slowness_ratio",
    "gauge",
    "ratio",
    "How much slower than the pool's median the endpoint is, which multiplies its cost.",
    ("endpoint",),
)
PREFILL_RATE = _series(
    "warmroute_endpoint_prefill_tokens_per_second",
    "gauge",
    "tokens per second",
    "Prefill speed that the router assumes.",
    ("endpoint",),
)
RESTARTS = _series(
    "warmroute_endpoint_restarts_total",
    "counter",
    "restarts",
    "Restarts of the engine, each with an empty cache, since the endpoint joined.",
    ("endpoint",),
)
EJECTIONS = _series(
    "warmroute_endpoint_ejections_total",
    "counter",
    "ejections",
    "Times that passive health kept the endpoint out since it joined: its responses failed or its engine stood still.",
    ("endpoint",),
)
PREFIX_LOOKUPS = _series(
    "warmroute_endpoint_prefix_lookup_tokens_total",
    "counter",
    "tokens",
    "Prompt tokens that the engine looked up in its prefix cache since the endpoint joined, by its own count; absent if it "
    "does not export both counters.",
    ("endpoint",),
)
PREFIX_HITS = _series(
    "warmroute_endpoint_prefix_hit_tokens_total",
    "counter",
    "tokens",
    "Prompt tokens that the engine found in its prefix cache, likewise; divided by the lookups this is the measured hit "
    "ratio.",
    ("endpoint",),
)
PREFIX_TRUST = _series(
    "warmroute_endpoint_prefix_trust",
    "gauge",
    "ratio",
    "Measured over expected cache hits of the endpoint, smoothed, 0 to 1; below 0.7 the router expects that much less. "
    "Absent if the engine does not export both counters.",
    ("endpoint",),
)
PREDICTED_TTFT = _series(
    "warmroute_endpoint_predicted_ttft_seconds",
    "gauge",
    "seconds",
    "Mean predicted time to first token of the requests that got theirs in the last minute; absent without any.",
    ("endpoint",),
)
MEASURED_TTFT = _series(
    "warmroute_endpoint_measured_ttft_seconds",
    "gauge",
    "seconds",
    "Mean time to first token in the last minute, by the engine's own count; absent without requests of this picker.",
    ("endpoint",),
)

# Prefix index
INDEX_CHECKPOINTS = _series(
    "warmroute_index_checkpoints",
    "gauge",
    "checkpoints",
    "Checkpoints in the index, as they count against --index-limit.",
    ("endpoint",),
)
INDEX_TOKENS = _series(
    "warmroute_index_tokens",
    "gauge",
    "tokens",
    "Tokens in the index for the endpoint: the estimated content of its KV cache.",
    ("endpoint",),
)
INDEX_LIMIT = _series(
    "warmroute_index_checkpoints_limit", "gauge", "checkpoints", "Most checkpoints over all endpoints (--index-limit)."
)

# Scrapes of the engines
SCRAPES = _series(
    "warmroute_scrapes_total",
    "counter",
    "scrapes",
    "Scrapes of the engine's metrics page, by result: ok, or what went wrong.",
    ("endpoint", "result"),
)
SCRAPE_AGE = _series(
    "warmroute_scrape_age_seconds",
    "gauge",
    "seconds",
    "Age of the engine's last metrics page; until there is one, time since the endpoint joined or its engine restarted.",
    ("endpoint",),
)

# Shared state (absent without --shared-state)
SHARED_STATE_CONNECTED = _series(
    "warmroute_shared_state_connected", "gauge", "1", "1 while the log is there, 0 while it is away."
)
SHARED_STATE_PICKERS = _series(
    "warmroute_shared_state_pickers", "gauge", "pickers", "Live pickers of the pool, this one included."
)
SHARED_STATE_SCRAPE_SHARE = _series(
    "warmroute_shared_state_scrape_share", "gauge", "ratio", "Share of the endpoints that this picker scrapes, 0 to 1."
)
SHARED_STATE_LAG = _series(
    "warmroute_shared_state_lag_seconds",
    "gauge",
    "seconds",
    "Time from publishing the latest batch of this picker until it was read back; while the log is away, for how long.",
)
SHARED_STATE_REPLAY_SECONDS = _series(
    "warmroute_shared_state_replay_seconds",
    "gauge",
    "seconds",
    "Time that reading the log took when this picker started.",
)
SHARED_STATE_BATCHES = _series(
    "warmroute_shared_state_batches_total",
    "counter",
    "batches",
    "Batches published (out) and read from other pickers (in).",
    ("direction",),
)
SHARED_STATE_BYTES = _series(
    "warmroute_shared_state_bytes_total", "counter", "bytes", "Bytes of these batches.", ("direction",)
)
SHARED_STATE_APPLIED = _series(
    "warmroute_shared_state_applied_total",
    "counter",
    "items",
    "What was applied of other pickers' batches: decision, report (figures of an engine), event (an engine restarted, fell "
    "silent, or was ejected).",
    ("kind",),
)
SHARED_STATE_SKIPPED = _series(
    "warmroute_shared_state_skipped_total",
    "counter",
    "items",
    "What was not applied. Batches: duplicate, outdated (stored a minute after they were published), unreadable (another "
    "key), unknown-version. Of batches: unknown-endpoint. "
    "Own decisions that were never published because the log was away: dropped. Own batches that the server does not take: "
    "too-large.",
    ("reason",),
)

# The picker itself
LOOP_LAG = _series(
    "warmroute_event_loop_lag_seconds",
    "histogram",
    "seconds",
    "Delay of the event loop: the time by which its callbacks run late.",
)
RELOADS = _series(
    "warmroute_config_reloads_total",
    "counter",
    "reloads",
    "Reloads of what may change while the server runs, by source (endpoints-file, certificate, annotations) and result "
    "(ok, error).",
    ("source", "result"),
)
LOG_LINES_DROPPED = _series(
    "warmroute_log_lines_dropped_total",
    "counter",
    "lines",
    "Log lines lost because the log was not read or not writable.",
)
DECISION_LOG_DROPPED = _series(
    "warmroute_decision_log_lines_dropped_total",
    "counter",
    "lines",
    "Lines of --decision-log lost because the file could not take them.",
)
SETTINGS_INFO = _series(
    "warmroute_settings_info",
    "info",
    "1",
    "The settings that matter when reading the other metrics.",
    ("routing_strategy", "prefix_match_threshold", "max_endpoints", "observe_responses"),
)
BUILD_INFO = _series(
    "warmroute_build_info",
    "info",
    "1",
    "What is running. `form` is `compiled` or `source`.",
    ("version", "python", "form"),
)

# Names that dashboards and autoscalers of other endpoint pickers read, where the meaning is the same
_POOL_KV_USAGE = "Mean share of the KV cache in use over the ready endpoints, 0 to 1; absent without any."
_POOL_QUEUE_SIZE = "Mean number of requests waiting in the engines over the ready endpoints; absent without any."
_POOL_RUNNING = "Mean number of requests running in the engines over the ready endpoints; absent without any."
_POOL_READY = "Ready endpoints."
POOL_KV_USAGE = tuple(
    _series(name, "gauge", "ratio", _POOL_KV_USAGE, ("name",))
    for name in ("inference_pool_average_kv_cache_utilization", "llm_d_epp_average_kv_cache_utilization")
)
POOL_QUEUE_SIZE = tuple(
    _series(name, "gauge", "requests", _POOL_QUEUE_SIZE, ("name",))
    for name in ("inference_pool_average_queue_size", "llm_d_epp_average_queue_size")
)
POOL_RUNNING = tuple(
    _series(name, "gauge", "requests", _POOL_RUNNING, ("name",))
    for name in ("inference_pool_average_running_requests", "llm_d_epp_average_running_requests")
)
POOL_READY = tuple(
    _series(name, "gauge", "endpoints", _POOL_READY, ("name",))
    for name in ("inference_pool_ready_pods", "llm_d_epp_ready_endpoints")
)
EXTENSION_INFO = _series("inference_extension_info", "info", "1", "What is running.", ("commit", "build_ref"))

CATALOGUE: tuple[MetricFamily, ...] = tuple(_CATALOGUE)
"""Every series, in the order of the documentation."""
