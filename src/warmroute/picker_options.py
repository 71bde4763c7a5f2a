"""Each part's share of the settings: the options and constants that :class:`~warmroute.picker.EndpointPicker` gives it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from warmroute import yaml_file
from warmroute.errors import ConfigurationError
from warmroute.extproc.server import ServerOptions
from warmroute.extproc.session import SessionRules
from warmroute.pool.models import Criticality
from warmroute.pool.pool import Pool
from warmroute.routing import strategies
from warmroute.routing.cost import CostConstants
from warmroute.routing.endpoint_load import LoadConstants
from warmroute.routing.router import RoutingConstants
from warmroute.routing.saturation import SaturationLimits
from warmroute.settings import Settings

if TYPE_CHECKING:
    from warmroute.shared_state.shared_state import SharedState

SHED_UP_TO = {"off": None, "sheddable": Criticality.SHEDDABLE, "upstream-v0.5": Criticality.STANDARD}
"""The setting ``shedding`` as a criticality."""


def routing_constants(settings: Settings) -> RoutingConstants:
    """The router's share of the settings. Raises ConfigurationError for a holdout strategy that is not there."""
    strategies.require_name(settings.holdout_strategy, "--holdout-strategy")
    return RoutingConstants(
        load=LoadConstants(
            cost=CostConstants(
                eviction=settings.cost_eviction,
                waiting=settings.cost_waiting,
                pool_waiting=settings.cost_pool_waiting,
                running=settings.cost_running,
                balance=settings.cost_balance,
                balance_from=settings.cost_balance_from,
                detour=settings.cost_detour,
                adapter=settings.cost_adapter,
                stale=settings.cost_stale,
            ),
            drain_factor=settings.drain_factor,
            queue_slack=settings.queue_slack,
            prefill_rate=settings.prefill_rate,
            max_num_seqs=settings.max_num_seqs,
            cache_tokens=settings.cache_tokens,
            staleness_threshold=settings.metrics_staleness_threshold,
        ),
        saturation=SaturationLimits(waiting=settings.saturation_queue_depth, kv_usage=settings.saturation_kv_usage),
        strategy=strategies.spelled(settings.routing_strategy),
        holdout=settings.holdout,
        holdout_strategy=strategies.spelled(settings.holdout_strategy),
        max_endpoints=settings.max_endpoints,
        prefix_match_threshold=settings.prefix_match_threshold,
        bytes_per_token=settings.bytes_per_token,
        cache_headroom=settings.cache_headroom,
        index_limit=settings.index_limit,
    )


def session_rules(settings: Settings) -> SessionRules:
    """A session's share of the settings."""
    return SessionRules(
        max_body_bytes=settings.max_body_bytes,
        max_json_values=settings.max_json_values,
        session_header=settings.session_header.lower(),
        observe_responses=settings.observe_responses,
        decision_metadata=settings.decision_metadata,
        enable_conformance_headers=settings.enable_conformance_headers,
        disable_endpoint_subset_filter=settings.disable_endpoint_subset_filter,
        strict_models=settings.strict_models,
        shed_up_to=SHED_UP_TO[settings.shedding],
    )


def server_options(settings: Settings) -> ServerOptions:
    """The server's share of the settings."""
    return ServerOptions(
        host=settings.host,
        grpc_port=settings.grpc_port,
        grpc_health_port=settings.grpc_health_port,
        secure_serving=settings.secure_serving,
        cert_path=settings.cert_path,
        max_body_bytes=settings.max_body_bytes,
        body_timeout=settings.body_timeout,
        max_streams=settings.max_streams,
        tracing=settings.tracing,
    )


def shared_state(settings: Settings, pool: Pool) -> SharedState:
    """The shared state of the pool's pickers. Raises ConfigurationError."""
    if settings.ha_enable_leader_election:
        raise ConfigurationError(
            "--ha-enable-leader-election and --shared-state exclude each other: all pickers are ready"
        )
    if settings.shared_state_key_path is None:
        raise ConfigurationError("--shared-state needs --shared-state-key-path: the key that encrypts what is shared")
    try:
        from warmroute.shared_state.nats_log import LogError, LogOptions, read_files  # an extra
        from warmroute.shared_state.seal import Seal
        from warmroute.shared_state.shared_state import SharedState
    except ModuleNotFoundError as error:
        raise ConfigurationError("--shared-state needs NATS's client: pip install 'warmroute[shared-state]'") from error
    servers = tuple(url.strip() for url in (settings.shared_state or "").split(","))
    pool_name = f"{settings.pool_namespace}.{settings.pool_name or 'file'}"
    secret = yaml_file.read(settings.shared_state_key_path, "file of --shared-state-key-path").strip()
    try:
        seal = Seal(secret, pool_name)
    except ValueError as error:
        raise ConfigurationError(f"--shared-state-key-path {settings.shared_state_key_path}: {error}") from error
    options = LogOptions(
        servers=servers,
        subject=f"{settings.shared_state_prefix}.{pool_name.replace('.', '_')}",
        credentials=settings.shared_state_credentials,
        tls=settings.shared_state_tls_path,
        max_age=settings.shared_state_history,
        max_bytes=settings.shared_state_bytes,
        replicas=settings.shared_state_replicas,
    )
    try:
        read_files(options)  # each connection reads them again
    except LogError as error:
        raise ConfigurationError(f"--shared-state: {error}") from error
    return SharedState(options, seal, pool)
