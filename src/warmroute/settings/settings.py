"""The declarations: default, meaning, group and limits of each setting, written once.

The setting ``grpc_port`` is the flag ``--grpc-port``, the environment variable ``WARMROUTE_GRPC_PORT`` and the key
``grpc_port`` of the settings file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_serializer, field_validator

from warmroute.settings.durations import seconds

Seconds = Annotated[float, BeforeValidator(seconds)]
"""A number of seconds; also accepts text with units ("500ms", "1m30s")."""


def _percent(value: object) -> object:
    """``5%`` as 0.05. Any other value is returned unchanged."""
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            return float(value.strip()[:-1]) / 100
        except ValueError:
            return value
    return value


Share = Annotated[float, BeforeValidator(_percent)]
"""A number from 0 to 1; also accepts text in percent ("5%")."""


def _empty_is_unset(value: object) -> object:
    return None if value == "" else value


def _false_is_off(value: object) -> object:
    """YAML 1.1 reads the word ``off`` as false."""
    return "off" if value is False else value


_USER_AND_PASSWORD = re.compile(r"((?:^|,)\s*(?:\w+://)?)[^,]*@")


def without_passwords(urls: str) -> str:
    """The URLs, separated by commas, with ``***`` in place of user and password."""
    return _USER_AND_PASSWORD.sub(r"\1***@", urls)


def _nats_servers(urls: str | None) -> str | None:
    """URLs that NATS's client takes, the scheme may be left out. The client would retry any other for ever."""
    schemes = set()
    for url in () if urls is None else urls.split(","):
        try:
            parts = urlsplit(url.strip() if "://" in url else f"nats://{url.strip()}")
            known = parts.scheme in (*_NATS_SCHEMES, *_WEB_SOCKET_SCHEMES) and parts.hostname and parts.port != 0
        except ValueError:  # a port that is no number
            known = False
        if not known:
            raise ValueError("must be URLs of NATS servers: nats://HOST:PORT, tls://, ws:// or wss://")
        schemes.add(parts.scheme)
    if not schemes.isdisjoint(_NATS_SCHEMES) and not schemes.isdisjoint(_WEB_SOCKET_SCHEMES):
        raise ValueError("must be all of them ws:// or wss://, or none")
    return urls


_NATS_SCHEMES = ("nats", "tls")
_WEB_SOCKET_SCHEMES = ("ws", "wss")

OptionalText = Annotated[str | None, BeforeValidator(_empty_is_unset)]
OptionalPath = Annotated[Path | None, BeforeValidator(_empty_is_unset)]


def setting(
    default: Any, text: str, *, group: str, hot: bool = False, upstream: tuple[str, ...] = (), **limits: Any
) -> Any:
    """A field of :class:`Settings`.

    ``hot`` settings may change while the server runs. ``upstream`` lists the names that other endpoint pickers use for
    this setting. ``limits`` are pydantic's (``ge``, ``le``, ...).
    """
    extra: dict[str, Any] = {"group": group, "hot": hot, "upstream": list(upstream)}
    return Field(default, description=text, json_schema_extra=extra, **limits)


RETIRED = frozenset(("cost_slots", "cost_kv", "cost_decode", "cost_longest"))
"""Settings of earlier versions: accepted with a warning, wherever they are given."""


class Settings(BaseModel):
    """The settings of one endpoint picker."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _printable(cls, value: object) -> object:
        """No name, address or path has a control character, and the system calls that take them raise for NUL."""
        if isinstance(value, str) and not value.isprintable():
            raise ValueError("must not have control characters")
        return value

    @field_serializer("shared_state", when_used="json-unless-none")
    def _without_password(self, urls: str) -> str:
        return without_passwords(urls)

    # Pool: where the endpoints come from
    endpoints_file: OptionalPath = setting(
        None,
        "YAML or JSON file with the endpoints, for use without Kubernetes. Changes are picked up. Give this or --pool-name.",
        group="Pool",
    )
    pool_name: OptionalText = setting(
        None,
        "Name of the InferencePool to serve. The cluster is the one the pod runs in, otherwise the one of KUBECONFIG.",
        group="Pool",
        upstream=("poolName",),
    )
    pool_namespace: str = setting(
        "default", "Namespace of the InferencePool.", group="Pool", upstream=("poolNamespace",)
    )
    pool_group: OptionalText = setting(
        None,
        "API group of the InferencePool: inference.networking.k8s.io or inference.networking.x-k8s.io. Unset: try both.",
        group="Pool",
    )
    ha_enable_leader_election: bool = setting(
        False,
        "Leader election by a Lease: of several pickers only the leader is ready. Kubernetes only.",
        group="Pool",
    )
    strict_models: bool = setting(
        False,
        "Answer 404 for models that no InferenceModel (or `models` entry of the endpoints file) names.",
        group="Pool",
        hot=True,
    )
    model_server_runtime: str = setting(
        "vllm",
        "Engine type of endpoints without a label for it: vllm, sglang, trtllm-serve, triton-tensorrt-llm or trt-llm.",
        group="Pool",
        hot=True,
    )

    # Server
    host: str = setting(
        "", "Address of the gRPC and metrics ports. Empty: all interfaces, IPv4 and IPv6.", group="Server"
    )
    grpc_port: int = setting(
        9002, "Port of the ext_proc service.", group="Server", upstream=("grpcPort",), ge=0, le=65535
    )
    grpc_health_port: int = setting(
        9003, "Port of the gRPC health service.", group="Server", upstream=("grpcHealthPort",), ge=0, le=65535
    )
    metrics_port: int = setting(
        9090,
        "Port of the Prometheus metrics, of /healthz and of /readyz.",
        group="Server",
        upstream=("metricsPort",),
        ge=0,
        le=65535,
    )
    debug_host: str = setting(
        "127.0.0.1",
        "Address of the debug pages. They show load and routing of all tenants, so keep them on loopback and use "
        "`kubectl port-forward`.",
        group="Server",
    )
    debug_token_file: OptionalPath = setting(
        None,
        "File with the bearer token that POST /debug/forget needs. Unset: nobody can make the picker forget a cache there.",
        group="Server",
    )
    debug_port: int = setting(9091, "Port of the debug pages. 0: any free port.", group="Server", ge=0, le=65535)
    secure_serving: bool = setting(
        True,
        "Serve ext_proc with TLS. The certificate is self-signed unless --cert-path is given.",
        group="Server",
        upstream=("secureServing",),
    )
    cert_path: OptionalPath = setting(
        None,
        "Directory with tls.crt and tls.key. They are reloaded when they change.",
        group="Server",
        upstream=("certPath",),
    )
    drain_timeout: Seconds = setting(
        30.0,
        "Longest time to keep serving after SIGTERM, in seconds, until open streams have ended.",
        group="Server",
        ge=0,
    )
    drain_quiet: Seconds = setting(
        2.0,
        "After SIGTERM, exit once no request has come for this many seconds. Must exceed the gateway's health-check "
        "interval.",
        group="Server",
        ge=0,
    )
    max_body_bytes: int = setting(
        32 << 20,
        "Largest request body in bytes. Larger ones get 413. The gRPC receive limit follows it.",
        group="Server",
        ge=1,
    )
    max_json_values: int = setting(
        1 << 20,
        "Most values in a JSON body, an object or a list counting as 4, a key as 2. Bodies with more get 413 before they "
        "are decoded. Each value takes up to 64 bytes of memory.",
        group="Server",
        ge=1000,
    )
    body_memory: int = setting(
        320 << 20,
        "Memory in bytes for large request bodies of all streams together, received and being read. Beyond it requests "
        "get 503. At least twice --max-body-bytes.",
        group="Server",
        ge=1,
    )
    body_timeout: Seconds = setting(
        60.0,
        "Seconds until a request, its body and trailers included, must be complete. Later ones get 408.",
        group="Server",
        gt=0,
    )
    max_streams: int = setting(
        20_000, "Most ext_proc streams open at once. Further ones are refused.", group="Server", ge=1
    )
    enable_conformance_headers: bool = setting(
        False,
        "For conformance tests only, since clients can then choose endpoints: obey the header "
        "test-epp-endpoint-selection and name the served endpoint in a response header.",
        group="Server",
    )

    # Routing
    routing_strategy: str = setting(
        "DEFAULT",
        "PREFIX_CACHE, DEFAULT, LEAST_REQUEST, ROUND_ROBIN, RANDOM, a function in a file (./my.py:function, not by "
        "annotation), or the name of a strategy installed under the entry-point group warmroute.strategies.",
        group="Routing",
        hot=True,
    )
    holdout: Share = setting(
        0.0,
        "Share of the requests that --holdout-strategy routes, as 0.05 or 5%, so that metrics show by arm what the routing "
        "strategy gains.",
        group="Routing",
        hot=True,
        ge=0,
        le=1,
    )
    holdout_strategy: str = setting(
        "LEAST_REQUEST",
        "Strategy of the held-out requests: the names of --routing-strategy, without files.",
        group="Routing",
        hot=True,
    )
    max_endpoints: int = setting(
        1,
        "Number of endpoints named to Envoy, best first. More than one works only with Envoy's override_host policy.",
        group="Routing",
        hot=True,
        ge=1,
    )
    prefix_match_threshold: float = setting(
        0.5,
        "Share of the prompt found in the prefix index above which `Do prefix-aware routing!` is logged.",
        group="Routing",
        hot=True,
        ge=0,
        le=1,
    )
    observe_responses: bool = setting(
        False,
        "Keep each stream open until the response ends. In-flight counts are then exact, and status and served endpoint "
        "are known, for more messages per request. The gateway must send response headers (`response_header_mode: SEND`).",
        group="Routing",
        hot=True,
    )
    session_header: str = setting(
        "x-session-id",
        "Request header with the client's session. Requests of one session whose prompt cannot be read go to one endpoint. "
        "Empty: no such header.",
        group="Routing",
        hot=True,
    )
    disable_endpoint_subset_filter: bool = setting(
        False, "Ignore the gateway's subset hint.", group="Routing", hot=True
    )

    # Shedding: who is refused while the pool is saturated
    shedding: Annotated[Literal["sheddable", "upstream-v0.5", "off"], BeforeValidator(_false_is_off)] = setting(
        "sheddable",
        "Requests that get 429 while every endpoint is saturated. sheddable: those of Sheddable InferenceModels and of "
        "InferenceObjectives with a negative priority. upstream-v0.5: all but Critical ones. off: none.",
        group="Shedding",
        hot=True,
    )
    saturation_queue_depth: int = setting(
        5,
        "An endpoint with more waiting requests than this is saturated.",
        group="Shedding",
        hot=True,
        upstream=("SD_QUEUE_DEPTH_THRESHOLD", "QUEUE_THRESHOLD_CRITICAL"),
        ge=0,
    )
    saturation_kv_usage: float = setting(
        0.8,
        "An endpoint whose KV cache utilization (0 to 1) is above this is saturated.",
        group="Shedding",
        hot=True,
        upstream=("SD_KV_CACHE_UTIL_THRESHOLD", "KV_CACHE_THRESHOLD"),
        ge=0,
        le=1,
    )

    # Cost: the constants of the cost function; docs/cost.md explains each term
    cost_eviction: float = setting(
        1.0,
        "Weight of eviction: in a full KV cache, new tokens cost this share of their prefill more.",
        group="Cost",
        hot=True,
        ge=0,
    )
    cost_waiting: float = setting(
        0.5,
        "Weight of the delay that a prefill causes to requests of the same endpoint still waiting for their prefill. 1: "
        "counted in full.",
        group="Cost",
        hot=True,
        ge=0,
    )
    cost_pool_waiting: float = setting(
        1.0,
        "Weight of the delay that a prefill causes to requests of the whole pool: as many as wait for their first token "
        "at the median candidate.",
        group="Cost",
        hot=True,
        ge=0,
    )
    cost_running: float = setting(
        0.15,
        "Weight of the delay that a prefill causes to requests being decoded, scaled by KV cache utilization.",
        group="Cost",
        hot=True,
        ge=0,
    )
    cost_balance: float = setting(
        1.0,
        "Weight of load balancing: each request on an endpoint adds to its cost; with the pool's mean number of requests it "
        "is up to this many times the prompt's prefill, less where less than half of the prompts' tokens is found in a "
        "cache. 0 turns it off.",
        group="Cost",
        hot=True,
        ge=0,
    )
    cost_balance_from: float = setting(
        3.0,
        "Mean requests of an endpoint at which load balancing counts half; on an idler pool it counts less.",
        group="Cost",
        hot=True,
        gt=0,
    )
    cost_detour: float = setting(
        0.2,
        "How much a request may lose to spare others a delay: the endpoint that gets it costs the request itself at most "
        "this share more than the endpoint that costs it least.",
        group="Cost",
        hot=True,
        ge=0,
    )
    cost_adapter: float = setting(0.1, "Seconds that loading a LoRA adapter costs.", group="Cost", hot=True, ge=0)
    cost_stale: float = setting(
        0.05,
        "Seconds of cost for each second by which an endpoint's metrics exceed --metrics-staleness-threshold.",
        group="Cost",
        hot=True,
        ge=0,
    )
    drain_factor: float = setting(
        1.0,
        "Estimated prefill queues drain at this share of the measured prefill speed.",
        group="Cost",
        hot=True,
        gt=0,
        le=2,
    )
    queue_slack: int = setting(
        2,
        "Waiting requests that the in-flight load may count beyond those that the last scrape reported.",
        group="Cost",
        hot=True,
        ge=0,
    )
    prefill_rate: float = setting(
        5_000.0,
        "Assumed prefill tokens per second until an engine has been measured. If unsure, set it too low.",
        group="Cost",
        hot=True,
        gt=0,
    )
    max_num_seqs: int = setting(
        256,
        "Assumed limit of requests that an engine runs at once, if its metrics page does not report one.",
        group="Cost",
        hot=True,
        ge=1,
    )
    bytes_per_token: float = setting(
        4.0, "Assumed prompt bytes per token until the ratio has been measured.", group="Cost", hot=True, gt=0
    )

    # Prefix index
    cache_tokens: int = setting(
        500_000, "Assumed KV cache size in tokens, if the engine does not report one.", group="Prefix index", ge=1
    )
    cache_headroom: float = setting(
        1.05,
        "Factor on the KV cache size for the index. Above it, prompts are expected that the engine has evicted; below it, "
        "prompts are forgotten that it holds.",
        group="Prefix index",
        gt=0,
    )
    index_limit: int = setting(
        2_000_000,
        "Most checkpoints (hashes of a prompt's beginnings) in the prefix index, all endpoints together; 130 bytes each at "
        "most. A run of them counts as four more, and so does a prompt of another picker.",
        group="Prefix index",
        ge=1000,
    )

    # Shared state: the log through which pickers of one pool exchange what they know (docs/shared-state.md)
    shared_state: Annotated[OptionalText, AfterValidator(_nats_servers)] = setting(
        None,
        "URLs of the NATS servers, separated by commas: nats://host:4222 or tls://host:4222, with user:password@ before the "
        "host to log in so. Pickers of one pool then share what they decide and learn. Unset: each knows what it has seen.",
        group="Shared state",
    )
    shared_state_key_path: OptionalPath = setting(
        None,
        "File with a secret of 16 bytes or more that the pickers of the pool have in common. It encrypts what they share: "
        "NATS and its users cannot read it. Required with --shared-state.",
        group="Shared state",
    )
    shared_state_credentials: OptionalPath = setting(
        None, "NATS credentials file (.creds). Unset: none.", group="Shared state"
    )
    shared_state_tls_path: OptionalPath = setting(
        None,
        "Directory with ca.crt for NATS servers with TLS and, where they ask for a client certificate, tls.crt and tls.key. "
        "Unset: the system's certificate authorities.",
        group="Shared state",
    )
    shared_state_prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$")] = setting(
        "warmroute",
        "First part of the NATS subject and stream. Namespace and name of the pool follow, so pools do not mix.",
        group="Shared state",
    )
    shared_state_history: Seconds = setting(
        600.0,
        "Seconds that the log goes back: what a picker knows that has just started.",
        group="Shared state",
        ge=60,
    )
    shared_state_bytes: int = setting(
        128 << 20,
        "Most bytes of the log, in the memory of each NATS server that has it.",
        group="Shared state",
        ge=1 << 20,
    )
    shared_state_replicas: int = setting(
        1, "NATS servers that keep the log: 1, or 3 in a cluster of at least 3.", group="Shared state", ge=1, le=5
    )

    # Engine metrics
    refresh_metrics_interval: Seconds = setting(
        0.1,
        "Seconds between two scrapes of a busy endpoint, as far as --metrics-rate allows.",
        group="Engine metrics",
        hot=True,
        upstream=("refreshMetricsInterval",),
        gt=0,
    )
    idle_metrics_interval: Seconds = setting(
        1.0, "Seconds between two scrapes of an idle endpoint.", group="Engine metrics", hot=True, gt=0
    )
    metrics_rate: float = setting(
        200.0,
        "Most scrapes of busy endpoints per second. With many endpoints the interval grows, up to --idle-metrics-interval.",
        group="Engine metrics",
        hot=True,
        gt=0,
    )
    metrics_timeout: Seconds = setting(1.0, "Timeout of a scrape, in seconds.", group="Engine metrics", hot=True, gt=0)
    metrics_staleness_threshold: Seconds = setting(
        5.0, "Age in seconds from which an endpoint's metrics are stale.", group="Engine metrics", hot=True, gt=0
    )
    max_metrics_bytes: int = setting(
        2 << 20,
        "Largest metrics page in bytes. The figures of a larger one are not used.",
        group="Engine metrics",
        ge=4096,
    )
    model_server_metrics_path: OptionalText = setting(
        None,
        "Path of the engines' metrics page. Unset: /prometheus/metrics for trtllm-serve, else /metrics.",
        group="Engine metrics",
        upstream=("modelServerMetricsPath",),
    )
    model_server_metrics_prefix: OptionalText = setting(
        None,
        "Beginning of the engines' metric names, in place of the engine's own (vllm:, sglang:, trtllm_, nv_trt_llm_). Ray "
        "Serve: ray_vllm: or ray_vllm_.",
        group="Engine metrics",
    )
    model_server_token_file: OptionalPath = setting(
        None,
        "File with the bearer token for the engines' metrics page and list of models. It is read again every 30 s.",
        group="Engine metrics",
    )
    data_parallel_ranks: bool = setting(
        True,
        "Where a metrics page shows several data-parallel engines of vLLM, choose among them and set the header "
        "X-data-parallel-rank. Off, and with --shared-state: the server chooses.",
        group="Engine metrics",
    )
    model_list_interval: Seconds = setting(
        10.0,
        "Seconds between two reads of an engine's list of models (/v1/models), which says what it serves. 0: never.",
        group="Engine metrics",
        hot=True,
        ge=0,
    )
    model_server_metrics_port: int = setting(
        0,
        "Port of the engines' metrics page. 0: the endpoint's port.",
        group="Engine metrics",
        upstream=("modelServerMetricsPort",),
        ge=0,
        le=65535,
    )
    model_server_metrics_scheme: Literal["http", "https"] = setting(
        "http", "Scheme of the engines' metrics page.", group="Engine metrics", upstream=("modelServerMetricsScheme",)
    )
    model_server_metrics_https_insecure_skip_verify: bool = setting(
        True,
        "Accept any TLS certificate of a metrics page.",
        group="Engine metrics",
        upstream=("modelServerMetricsHttpsInsecureSkipVerify",),
    )

    # Observability
    log_format: Literal["console", "json"] = setting(
        "console", "console: tab-separated lines. json: one JSON object per line.", group="Observability"
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting(
        "info", "Lowest level that is logged.", group="Observability", hot=True
    )
    debug_decisions: int = setting(
        1000,
        "Number of decisions kept for /debug/decisions and `warmroute explain` (6 KB each at 100 endpoints). 0: none.",
        group="Observability",
        ge=0,
        le=100_000,
    )
    decision_metadata: bool = setting(
        False,
        "Give Envoy the reason and the cached share of each decision as dynamic metadata of the namespace `warmroute`, for "
        "access logs. The gateway must list the namespace in receiving_namespaces.",
        group="Observability",
        hot=True,
    )
    tracing: bool = setting(
        False,
        "Send a span for each pick to an OpenTelemetry collector (extra `otel`); OTEL_EXPORTER_OTLP_ENDPOINT and "
        "OpenTelemetry's other variables say where and how.",
        group="Observability",
    )
    decision_log: OptionalText = setting(
        None,
        "File that gets a JSON line for each decision: costs and predictions of the candidates, and with "
        "--observe-responses what was measured. stdout: standard output.",
        group="Observability",
    )
    decision_log_bytes: int = setting(
        64 << 20,
        "Size at which the decision log's file is renamed to FILE.1 and a new one is begun; three such files are kept.",
        group="Observability",
        ge=1 << 16,
    )


def extra_of(name: str) -> Mapping[str, Any]:
    """The ``group``, ``hot`` and ``upstream`` that :func:`setting` was given for the setting ``name``."""
    extra = Settings.model_fields[name].json_schema_extra
    assert isinstance(extra, dict)
    return extra


def flag_of(name: str) -> str:
    """The flag of the setting ``name``."""
    return "--" + name.replace("_", "-")


HOT_SETTINGS = frozenset(name for name in Settings.model_fields if extra_of(name)["hot"])
"""Settings that may change while the server runs."""
