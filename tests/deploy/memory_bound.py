"""The upper bound of the picker's memory, from its settings, for the tests of the limits in deploy/."""

from __future__ import annotations

from warmroute.extproc.session import HEADERS_MEMORY
from warmroute.grpc_server.connection import HELD_FREELY
from warmroute.observability.live.shared_prefixes import MOST_CHECKPOINTS, SIZE
from warmroute.observability.log_writer import MOST_WAITING
from warmroute.prefix.index import UNCONFIRMED_SHARE
from warmroute.request.limits import LENIENT_MEMORY, LONG_BODY, TEXT_MEMORY, VALUE_MEMORY
from warmroute.settings import Settings

IDLE_MEMORY = 96 << 20
"""Bytes of memory of a picker of 100 endpoints before its first request: 92 MiB with TLS and the Kubernetes client, 70 MiB
with TLS and a file of endpoints, 59 MiB without TLS (VmRSS 15 s after each of three starts, CPython 3.11)."""
CHECKPOINT_MEMORY = 130
"""Bytes of memory, at most, of what counts as one checkpoint in the prefix index: 86 in long runs of checkpoints, 99 where
each is alone (tracemalloc; `warmroute bench cost`: index, per checkpoint and endpoint)."""
BEGINNING_CHECKPOINT_MEMORY = 44
"""Bytes of memory of a checkpoint of a beginning that the live page counts: an integer and its place in a list."""
OPEN_CHECKPOINT_MEMORY = 80
"""Bytes of memory of a checkpoint of an open prompt's chain: two integers and their places in lists."""
DECISION_MEMORY = 6_000
"""Bytes of memory of a decision's record at 100 endpoints (tracemalloc on CPython 3.11: 5.7 KB)."""
STREAM_MEMORY = 5_500
"""Bytes of memory of an open ext_proc stream with headers that are held freely, bodies apart."""


def memory_bound(settings: Settings) -> int:
    """Bytes of memory that the process takes at most. The limit in deploy/base/deployment.yaml is above it.

    A message of gRPC is held twice while it is decoded, and is at most twice as long as a body may be. Short bodies are read
    one at a time and are not counted in the budget, nor is what connections hold freely.
    """
    short_body = VALUE_MEMORY * min(2 * LONG_BODY, settings.max_json_values)
    short_body += (TEXT_MEMORY + LENIENT_MEMORY) * LONG_BODY
    waiting_decisions = MOST_WAITING if settings.decision_log is not None else 0
    return (
        IDLE_MEMORY
        + DECISION_MEMORY * (settings.debug_decisions + waiting_decisions)
        + int(CHECKPOINT_MEMORY + OPEN_CHECKPOINT_MEMORY * UNCONFIRMED_SHARE) * settings.index_limit
        + BEGINNING_CHECKPOINT_MEMORY * 2 * SIZE * MOST_CHECKPOINTS
        + settings.body_memory
        + STREAM_MEMORY * settings.max_streams
        + HEADERS_MEMORY
        + HELD_FREELY
        + 2 * settings.max_body_bytes
        + short_body
    )
