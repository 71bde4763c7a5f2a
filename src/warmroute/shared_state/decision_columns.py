"""Decisions as the columns of a batch, and the names that a batch refers to by position. WITHOUT IO.

A decision is added up with others for its endpoint when it is made, and nothing of it is kept but numbers: its chain is
still in the processor's cache then, and can be freed.
"""

from __future__ import annotations

from functools import lru_cache

from xxhash import xxh32_intdigest

from warmroute.pool.endpoint import Endpoint
from warmroute.prefix.remote import PromptGrowth
from warmroute.routing.cache_model import LONG_TAIL
from warmroute.routing.decision import Decision
from warmroute.routing.endpoint_load import EndpointLoad
from warmroute.routing.sent_request import NOT_ENTERED
from warmroute.shared_state import shared_state_pb2 as pb

MOST_DECISIONS = 1000
"""Decisions in one batch."""
MOST_CHECKPOINTS = 20_000
"""Checkpoints in one batch, those of its last decision not counted: about 200 kB. The last decision may add as many, and one
prompt more. A NATS server takes messages of 1 MB."""
MOST_NAMES = 256 << 10
"""Bytes of names in one batch, from which on the next decision belongs to the next one."""
NAME_SIZE = 12
"""Bytes of an entry in the tables beside its name."""
LARGEST = 2**32 - 1
SPAN = 0.02
"""Seconds within which decisions for one endpoint are added up."""
COLUMNS = ("endpoint", "age", "decisions", "work", "tokens", "cached_tokens", "prompt_bytes", "prompts")
"""Columns with one number for each group of decisions."""
PROMPT_COLUMNS = ("checkpoints", "held_bytes", "new_bytes")
"""Columns with one number for each prompt."""
RARE_COLUMNS = ("flags", "adapter", "further")
"""Columns that have none if they would be 0 throughout."""
UNKNOWN_LENGTH, READS_NO_CACHE = 1, 2
"""Bits of the column ``flags``."""


class Names:
    """The tables of a batch: endpoints and adapters, by the positions at which they stand."""

    def __init__(self) -> None:
        self._endpoints: dict[tuple[str, str], int] = {}
        """By id and incarnation."""
        self._adapters: dict[str, int] = {}
        self.size = 0
        """Bytes of the tables in the batch, about."""

    def endpoint(self, endpoint: Endpoint) -> int:
        """The position of the endpoint as it is now: another incarnation of it has another one."""
        key = endpoint.id, endpoint.spec.incarnation
        place = self._endpoints.get(key)
        if place is None:
            place = self._endpoints[key] = len(self._endpoints)
            self.size += len(endpoint.id) + NAME_SIZE
        return place

    def adapter(self, name: str) -> int:
        """The adapter's position."""
        place = self._adapters.get(name)
        if place is None:
            place = self._adapters[name] = len(self._adapters)
            self.size += len(name.encode()) + NAME_SIZE
        return place

    def write(self, batch: pb.Batch) -> None:
        """Add the tables to the batch."""
        for name, incarnation in self._endpoints:
            batch.endpoints.add(id=name, incarnation=_digest(incarnation))
        batch.adapters.extend(self._adapters)


class _Group:
    """Decisions for one endpoint, added up."""

    __slots__ = (
        "adapter", "at", "cached_tokens", "decisions", "endpoint", "flags", "further", "growths", "prompt_bytes", "tokens",
        "work",
    )  # fmt: skip

    def __init__(self, endpoint: int, flags: int, adapter: int, at: float) -> None:
        self.endpoint = endpoint
        self.flags = flags
        self.adapter = adapter
        self.at = at
        """When the first was made."""
        self.decisions = self.further = self.prompt_bytes = 0
        self.work = self.tokens = self.cached_tokens = 0.0
        self.growths: list[PromptGrowth] = []

    def columns(self, now: float) -> tuple[int, ...]:
        """In the order of :data:`COLUMNS`."""
        return (
            self.endpoint,
            age(self.at, now),
            self.decisions,
            whole(self.work),
            whole(self.tokens),
            whole(self.cached_tokens),
            whole(self.prompt_bytes),
            len(self.growths),
        )


class DecisionColumns:
    """The decisions of one batch."""

    def __init__(self) -> None:
        self.names = Names()
        self._groups: list[_Group] = []
        self._latest: dict[tuple[EndpointLoad, int, int, int, bool], _Group] = {}
        """The group that may grow, by endpoint, process of its engine, flags, adapter, and whether there are prompts."""
        self._decisions = self._checkpoints = 0

    def __len__(self) -> int:
        """Decisions."""
        return self._decisions

    @property
    def full(self) -> bool:
        """The next decision belongs to the next batch."""
        return (
            self._decisions >= MOST_DECISIONS or self._checkpoints >= MOST_CHECKPOINTS or self.names.size >= MOST_NAMES
        )

    def add(self, decision: Decision) -> None:
        """A decision. Further prompts are left out once it has added :data:`MOST_CHECKPOINTS`."""
        load = decision.load
        growths = _growths(decision)
        flags = UNKNOWN_LENGTH * (not decision.length_known) + READS_NO_CACHE * (not decision.reads_cache)
        adapter = 1 + self.names.adapter(decision.adapter) if decision.adapter else 0
        key = load, decision.process, flags, adapter, decision.prompt_bytes > 0
        long = any(growth.new_bytes >= LONG_TAIL for growth in growths)
        group = self._latest.get(key)
        if group is None or long or decision.at >= group.at + SPAN:
            group = _Group(self.names.endpoint(load.endpoint), flags, adapter, decision.at)
            self._groups.append(group)
            if not long:  # its engine may reject it: it is confirmed by itself
                self._latest[key] = group
        self._decisions += 1
        group.decisions += 1
        group.further += decision.requests - 1
        group.work += decision.uncached_work
        group.prompt_bytes += decision.prompt_bytes * decision.samples
        if growths:
            again = (decision.samples - 1) * decision.prompt_tokens
            group.tokens += decision.prompt_tokens + again
            group.cached_tokens += decision.cached_tokens / load.confirmation.factor + again
            group.growths += growths
            self._checkpoints += sum([len(growth.hashes) for growth in growths])

    def write(self, columns: pb.Decisions, now: float) -> None:
        """Add the decisions to a batch that is published at ``now``."""
        groups = self._groups
        if not groups:
            return
        for name, column in zip(COLUMNS, zip(*[group.columns(now) for group in groups], strict=True), strict=True):
            getattr(columns, name).extend(column)
        for name in RARE_COLUMNS:
            rare = [getattr(group, name) for group in groups]
            if any(rare):
                getattr(columns, name).extend(rare)
        growths = [growth for group in groups for growth in group.growths]
        columns.checkpoints.extend([len(growth.hashes) for growth in growths])
        columns.held_bytes.extend([whole(growth.held_bytes) for growth in growths])
        columns.new_bytes.extend([whole(growth.new_bytes) for growth in growths])
        for growth in growths:
            columns.hashes.extend(growth.hashes)


def _growths(decision: Decision) -> list[PromptGrowth]:
    """What the decision's prompts add to the cache of its endpoint."""
    growths: list[PromptGrowth] = []
    checkpoints = 0
    for chain, held in zip(decision.chains, decision.held, strict=False):  # none is held without a cache
        if held == NOT_ENTERED or checkpoints >= MOST_CHECKPOINTS:
            continue
        held_bytes = chain.ends[held - 1] if held else 0
        growths.append(PromptGrowth(chain.hashes[max(0, held - 1) :], held_bytes, chain.ends[-1] - held_bytes))
        checkpoints += len(growths[-1].hashes)
    return growths


def incarnation_of(endpoint: Endpoint) -> int:
    """The endpoint's incarnation as a batch has it; 0 if discovery knows none."""
    return _digest(endpoint.spec.incarnation)


@lru_cache(maxsize=4096)
def _digest(incarnation: str) -> int:
    return xxh32_intdigest(incarnation.encode()) or 1 if incarnation else 0


def age(at: float, now: float) -> int:
    """Microseconds."""
    return whole((now - at) * 1e6)


def whole(value: float) -> int:
    """The number as a column can have it."""
    return int(value) if 0 <= value < LARGEST else LARGEST if value > 0 else 0
