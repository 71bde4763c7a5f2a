"""Every setting of ``warmroute serve``, once: its default, its meaning, its flag, its environment variable.

A setting called ``grpc_port`` is the flag ``--grpc-port``, the environment variable ``WARMROUTE_GRPC_PORT`` and the key
``grpc_port`` of the file given with ``--settings-file``; flags win over the environment, the environment over the file.
The command line, the documentation's tables and the hot settings of an InferencePool's annotations come from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from warmroute.errors import ConfigurationError

ENV_PREFIX = "WARMROUTE_"


def setting(
    default: Any, text: str, *, group: str, hot: bool = False, upstream: tuple[str, ...] = (), **limits: Any
) -> Any:
    """A field of :class:`Settings`.

    ``hot`` settings may change while the server runs. ``upstream`` lists the spellings of older endpoint pickers for the
    same thing.
    """
    extra: dict[str, Any] = {"group": group, "hot": hot, "upstream": list(upstream)}
    return Field(default, description=text, json_schema_extra=extra, **limits)


def seconds(value: object) -> object:
    """A Go-style duration ("500ms", "1m30s") as seconds; anything else unchanged, for pydantic to judge."""
    if not isinstance(value, str):
        return value
    units = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
    total, digits, rest = 0.0, "", value.strip()
    if not any(c.isalpha() for c in rest):
        return value
    while rest:
        i = 0
        while i < len(rest) and (rest[i].isdigit() or rest[i] == "."):
            i += 1
        digits, rest = rest[:i], rest[i:]
        unit = next((u for u in ("ns", "us", "µs", "ms", "s", "m", "h") if rest.startswith(u)), None)
        if not digits or unit is None:
            return value
        total += float(digits) * units[unit]
        rest = rest[len(unit) :]
    return total


class Settings(BaseSettings):
    """The settings of one endpoint picker."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )

    # Pool: where the endpoints come from
    endpoints_file: Path | None = setting(
        None,
        "YAML or JSON file with the endpoints; watched, no Kubernetes needed. Either this or --pool-name.",
        group="Pool",
    )
    pool_name: str | None = setting(
        None,
        "Name of the InferencePool to serve; the cluster is that of the pod, else of KUBECONFIG.",
        group="Pool",
        upstream=("poolName",),
    )
    pool_namespace: str = setting(
        "default", "Namespace of the InferencePool.", group="Pool", upstream=("poolNamespace",)
    )
    pool_group: str | None = setting(
        None,
        "API group of the InferencePool: inference.networking.k8s.io or inference.networking.x-k8s.io; unset: both.",
        group="Pool",
    )
    ha_enable_leader_election: bool = setting(
        False,
        "Stand by unless this process holds the pool's Lease: of several pickers one is ready. Kubernetes only.",
        group="Pool",
    )
    strict_models: bool = setting(
        False,
        "Answer 404 for models that no InferenceModel (or `models` entry of the file) names.",
        group="Pool",
        hot=True,
    )
    model_server_runtime: str = setting(
        "vllm",
        "Engine whose metrics are read where no label says: vllm, sglang, trtllm-serve, triton-tensorrt-llm or trt-llm.",
        group="Pool",
        hot=True,
    )

    # Server
    host: str = setting("", "Address to listen on; empty: all interfaces, IPv4 and IPv6.", group="Server")
    grpc_port: int = setting(
        9002, "Port of the ext_proc service.", group="Server", upstream=("grpcPort",), ge=0, le=65535
    )
    grpc_health_port: int = setting(
        9003, "Port of the gRPC health service.", group="Server", upstream=("grpcHealthPort",), ge=0, le=65535
    )
    metrics_port: int = setting(
        9090,
        "Port of the Prometheus metrics and the debug pages.",
        group="Server",
        upstream=("metricsPort",),
        ge=0,
        le=65535,
    )
    secure_serving: bool = setting(
        True,
        "Serve ext_proc with TLS; self-signed unless --cert-path is given.",
        group="Server",
        upstream=("secureServing",),
    )
    cert_path: Path | None = setting(
        None,
        "Directory with tls.crt and tls.key; reloaded when they change.",
        group="Server",
        upstream=("certPath",),
    )
    drain_timeout: float = setting(
        30.0, "Seconds to go on serving after SIGTERM while open streams end.", group="Server", ge=0
    )
    drain_quiet: float = setting(
        2.0,
        "Seconds without a request after which that time ends early: gateways need them to see that it is not ready.",
        group="Server",
        ge=0,
    )
    max_body_bytes: int = setting(
        32 << 20, "Largest request body; larger ones get 413. The gRPC receive limit follows it.", group="Server", ge=1
    )
    max_json_values: int = setting(
        1 << 20,
        "Most values in a JSON body, an object or a list counting as 4; bodies with more get 413 before they are decoded. "
        "Each takes up to 56 bytes of memory.",
        group="Server",
        ge=1000,
    )
    body_timeout: float = setting(
        60.0, "Seconds within which a request's body must be complete; later ones get 408.", group="Server", gt=0
    )
    max_streams: int = setting(20_000, "Most ext_proc streams open at once; more are refused.", group="Server", ge=1)
    enable_conformance_headers: bool = setting(
        False,
        "Honour test-epp-endpoint-selection and report the served endpoint in a response header. For conformance "
        "tests only: it lets clients choose endpoints.",
        group="Server",
    )

    # Routing
    routing_strategy: str = setting(
        "DEFAULT",
        "PREFIX_CACHE, DEFAULT, LEAST_REQUEST, ROUND_ROBIN, RANDOM or a strategy installed under the entry-point group "
        "warmroute.strategies.",
        group="Routing",
        hot=True,
    )
    max_endpoints: int = setting(
        1,
        "Endpoints named to Envoy, best first; more than one only with override_host.",
        group="Routing",
        hot=True,
        ge=1,
    )
    prefix_match_threshold: float = setting(
        0.5, "Matching ratio above which `Do prefix-aware routing!` is logged.", group="Routing", hot=True, ge=0, le=1
    )
    observe_responses: bool = setting(
        False,
        "Keep streams open to the end of the response: exact requests in flight, status and served endpoint, for more "
        "messages per request. The gateway must send response headers (`response_header_mode: SEND`).",
        group="Routing",
        hot=True,
    )
    disable_endpoint_subset_filter: bool = setting(
        False, "Ignore the gateway's subset hint.", group="Routing", hot=True
    )

    # Shedding: who is refused while the pool is saturated
    shedding: Literal["sheddable", "upstream-v0.5", "off"] = setting(
        "sheddable",
        "Requests answered with 429 while no endpoint has room. sheddable: those of Sheddable InferenceModels and of "
        "InferenceObjectives with a negative priority; upstream-v0.5: all but Critical ones; off: none.",
        group="Shedding",
        hot=True,
    )
    saturation_queue_depth: int = setting(
        5,
        "Waiting requests up to which an endpoint has room.",
        group="Shedding",
        hot=True,
        upstream=("SD_QUEUE_DEPTH_THRESHOLD", "QUEUE_THRESHOLD_CRITICAL"),
        ge=0,
    )
    saturation_kv_usage: float = setting(
        0.8,
        "Share of the KV cache in use up to which an endpoint has room.",
        group="Shedding",
        hot=True,
        upstream=("SD_KV_CACHE_UTIL_THRESHOLD", "KV_CACHE_THRESHOLD"),
        ge=0,
        le=1,
    )

    # Cost: the constants of the cost function; docs/cost.md explains each term
    cost_eviction: float = setting(
        1.0,
        "Price in prefill tokens of a new token in a full cache, if what it evicts is asked for again.",
        group="Cost",
        hot=True,
        ge=0,
    )
    cost_waiting: float = setting(
        1.0, "Delay that a new token means to each request waiting for its first token.", group="Cost", hot=True, ge=0
    )
    cost_running: float = setting(
        0.15,
        "Delay that a new token means to each request being decoded where the KV cache is in use.",
        group="Cost",
        hot=True,
        ge=0,
    )
    cost_decode: float = setting(
        20.0, "Prefill tokens that a running request counts for.", group="Cost", hot=True, ge=0
    )
    cost_balance: float = setting(
        1.0,
        "Share of the prompt (up to 8,192 tokens) that an endpoint with its share of the requests counts for.",
        group="Cost",
        hot=True,
        ge=0,
    )
    cost_slots: float = setting(
        1.0, "Weight of the guard against more requests than the engine runs at once.", group="Cost", hot=True, ge=0
    )
    cost_kv: float = setting(20.0, "Weight of the guard against a full KV cache.", group="Cost", hot=True, ge=0)
    cost_adapter: float = setting(
        2000.0, "Prefill tokens that loading a LoRA adapter counts for.", group="Cost", hot=True, ge=0
    )
    cost_stale: float = setting(
        1000.0,
        "Prefill tokens for each second that an endpoint's metrics are older than allowed.",
        group="Cost",
        hot=True,
        ge=0,
    )
    drain_factor: float = setting(
        1.0,
        "Share of the measured prefill speed at which the virtual queue drains.",
        group="Cost",
        hot=True,
        gt=0,
        le=2,
    )
    queue_slack: int = setting(
        2, "Waiting requests that the books may hold beyond what a scrape showed.", group="Cost", hot=True, ge=0
    )
    prefill_rate: float = setting(
        5_000.0,
        "Prefill tokens per second of engines of which none has been measured yet; rather too few than too many.",
        group="Cost",
        hot=True,
        gt=0,
    )
    max_num_seqs: int = setting(
        256, "Requests that an engine runs at once where its page does not tell.", group="Cost", hot=True, ge=1
    )
    bytes_per_token: float = setting(
        4.0, "Prompt bytes for each token until a model's own ratio is known.", group="Cost", hot=True, gt=0
    )

    # Prefix index
    cache_tokens: int = setting(
        500_000, "KV-cache size of an engine that does not tell its own, in tokens.", group="Prefix index", ge=1
    )
    cache_headroom: float = setting(
        1.25,
        "Factor on the KV-cache size: an index that is too small costs far more than one too large.",
        group="Prefix index",
        gt=0,
    )
    index_limit: int = setting(
        2_000_000, "Most checkpoints held over all endpoints (about 200 bytes each).", group="Prefix index", ge=1000
    )

    # Engine metrics
    refresh_metrics_interval: float = setting(
        0.1,
        "Seconds between scrapes of a busy endpoint, if --metrics-rate allows.",
        group="Engine metrics",
        hot=True,
        upstream=("refreshMetricsInterval",),
        gt=0,
    )
    idle_metrics_interval: float = setting(
        1.0, "Seconds between scrapes of an idle endpoint.", group="Engine metrics", hot=True, gt=0
    )
    metrics_rate: float = setting(
        200.0,
        "Scrapes of busy endpoints each second: where there are more of these, the interval grows, up to the idle one.",
        group="Engine metrics",
        hot=True,
        gt=0,
    )
    metrics_timeout: float = setting(1.0, "Seconds to wait for a metrics page.", group="Engine metrics", hot=True, gt=0)
    metrics_staleness_threshold: float = setting(
        5.0, "Age in seconds from which an endpoint's metrics count as stale.", group="Engine metrics", hot=True, gt=0
    )
    model_server_metrics_path: str = setting(
        "/metrics", "Path of the engines' metrics page.", group="Engine metrics", upstream=("modelServerMetricsPath",)
    )
    model_server_metrics_port: int = setting(
        0,
        "Port of the engines' metrics page; 0: the endpoint's own.",
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
        "Accept any certificate of a metrics page.",
        group="Engine metrics",
        upstream=("modelServerMetricsHttpsInsecureSkipVerify",),
    )

    # Observability
    log_format: Literal["console", "json"] = setting(
        "console", "console: tab-separated lines; json: one object a line.", group="Observability"
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting(
        "info", "Least level that is logged.", group="Observability", hot=True
    )
    debug_decisions: int = setting(
        100, "Decisions kept for /debug/decisions; 0: none.", group="Observability", ge=0, le=10_000
    )

    @field_validator(
        "drain_timeout",
        "drain_quiet",
        "body_timeout",
        "refresh_metrics_interval",
        "idle_metrics_interval",
        "metrics_timeout",
        "metrics_staleness_threshold",
        mode="before",
    )
    @classmethod
    def _duration(cls, value: object) -> object:
        return seconds(value)

    @field_validator("pool_name", "pool_group", "endpoints_file", "cert_path", mode="before")
    @classmethod
    def _unset(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("shedding", mode="before")
    @classmethod
    def _switch(cls, value: object) -> object:
        return "off" if value is False else value  # how YAML reads the word

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what :func:`load` passes in: it merges file, environment and flags itself."""
        return (init_settings,)


def extra_of(name: str) -> Mapping[str, Any]:
    """What :func:`setting` was told of the setting ``name``: its ``group``, ``hot`` and ``upstream``."""
    extra = Settings.model_fields[name].json_schema_extra
    assert isinstance(extra, dict)
    return extra


def as_text(default: object) -> str:
    """A default as one would write it on the command line; empty for unset."""
    if default is None:
        return ""
    return str(default).lower() if isinstance(default, bool) else str(default)


def documentation() -> str:
    """Every setting as Markdown tables, one for each group: what README shows."""
    groups: dict[str, list[str]] = {}
    for name, info in Settings.model_fields.items():
        extra = extra_of(name)
        default = as_text(info.default)
        cells = [
            f"`--{name.replace('_', '-')}`",
            f"`{default}`" if default else "",
            "yes" if extra["hot"] else "",
            str(info.description),
        ]
        groups.setdefault(extra["group"], []).append("| " + " | ".join(cells) + " |")
    head = "| flag | default | hot | meaning |\n|---|---|---|---|"
    return "\n\n".join("\n".join([f"**{group}**", "", head, *rows]) for group, rows in groups.items())


HOT_SETTINGS = frozenset(name for name in Settings.model_fields if extra_of(name)["hot"])
"""Settings that may change while the server runs."""


def load(flags: Mapping[str, Any], *, environ: Mapping[str, str], settings_file: Path | None = None) -> Settings:
    """Merge the file, the environment and the flags (each winning over the one before).

    Raises :class:`~warmroute.errors.ConfigurationError` that names the setting, where it came from and what is wrong.
    """
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    if settings_file is not None:
        for name, value in _read_file(settings_file).items():
            values[name], origin[name] = value, f"{settings_file}: {name}"
    for name in Settings.model_fields:
        upstream = [spelling for spelling in extra_of(name)["upstream"] if spelling.isupper()]
        for variable in (*upstream, ENV_PREFIX + name.upper()):
            if variable in environ:
                values[name], origin[name] = environ[variable], variable
    for name, value in flags.items():
        values[name], origin[name] = value, "--" + name.replace("_", "-")
    return _validated(values, origin)


def changed(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """``settings`` with hot settings replaced. Raises ConfigurationError for others and for bad values."""
    for name in changes:
        if name not in HOT_SETTINGS:
            raise ConfigurationError(f"{name} cannot change while the server runs")
    return _validated({**settings.model_dump(), **changes}, {})


def _read_file(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read the settings file {path}: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark is not None else ""
        raise ConfigurationError(f"the settings file {path}: {where}{error.problem}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"the settings file {path}: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigurationError(f"the settings file {path} must be a mapping of names to values")
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def _validated(values: Mapping[str, Any], origin: Mapping[str, str]) -> Settings:
    try:
        return Settings(**values)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            name = str(item["loc"][0]) if item["loc"] else ""
            if item["type"] == "extra_forbidden":
                problems.append(f"{origin.get(name, name)}: there is no such setting")
            else:
                problems.append(f"{origin.get(name, name)}: {item['msg']} (given: {item['input']!r})")
        raise ConfigurationError("; ".join(problems)) from error
