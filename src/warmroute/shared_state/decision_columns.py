"""Decisions as the columns of a batch, and the names that a batch refers to by position. WITHOUT IO.

A decision is taken apart when it is made, and nothing of it is kept but numbers: its chain is in the processor's cache then,
and requests go on in memory that has just been freed.
"""

from __future__ import annotations

from functools import lru_cache

from xxhash import xxh32_intdigest

from warmroute.pool.endpoint import Endpoint
from warmroute.routing.decision import Decision
from warmroute.shared_state import shared_state_pb2 as pb
from warmroute.shared_state.logged_chains import Addition, LoggedChains

MOST_DECISIONS = 1000
"""Decisions in one batch."""
MOST_CHECKPOINTS = 20_000
"""Checkpoints in one batch, those of its last decision not counted: about 200 kB. The last decision may add as many, and one
prompt more. A NATS server takes messages of 1 MB."""
NAME_SIZE = 12
"""Bytes of an entry in the tables beside its name."""
LARGEST = 2**32 - 1
COLUMNS = ("endpoint", "age", "prompt_tokens", "cached_tokens", "prompt_bytes", "base", "known", "added")
"""Columns with one number for each decision."""
RARE_COLUMNS = ("flags", "adapter", "requests", "samples", "prompts")
"""Columns that have none if they would be 0 throughout."""
EXACT, PARTIAL, FURTHER, READS_NO_CACHE = 1, 2, 4, 8
"""Bits of the column ``flags``."""
THOUSANDTHS = 1000
"""Unit of the column ``prompts``."""
_ORDINARY = (0, 0, 0, 0, 0)
"""What ordinary requests have in the rare columns."""


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


class DecisionColumns:
    """The decisions of one batch."""

    def __init__(self) -> None:
        self.names = Names()
        self._rows: list[tuple[int, float, int, int, int, int, int, int]] = []
        """In the order of :data:`COLUMNS`; the time of the decision in place of its age."""
        self._rare: list[tuple[int, ...]] = []
        self._hashes: list[int] = []
        self._distances: list[int] = []

    def __len__(self) -> int:
        """Prompts, mostly one for each decision."""
        return len(self._rows)

    @property
    def full(self) -> bool:
        """The next decision belongs to the next batch."""
        return len(self._rows) >= MOST_DECISIONS or len(self._hashes) >= MOST_CHECKPOINTS

    def add(self, decision: Decision, chains: LoggedChains) -> None:
        """A decision. ``chains`` are what the log has before it. Further prompts are left out once it has added
        :data:`MOST_CHECKPOINTS`."""
        most = len(self._hashes) + MOST_CHECKPOINTS
        endpoint, at = self.names.endpoint(decision.load.endpoint), decision.at
        tokens = whole(decision.prompt_tokens), whole(decision.cached_tokens)
        self._add_prompt((endpoint, at, *tokens, whole(decision.prompt_bytes)), chains.add(decision.chain, at))
        self._rare.append(self._rare_row(decision))
        for chain in decision.further:
            if len(self._hashes) >= most:
                break
            self._add_prompt((0, at, 0, 0, whole(chain.prompt_bytes)), chains.add(chain, at))
            self._rare.append((FURTHER, 0, 0, 0, 0))

    def _add_prompt(self, numbers: tuple[int, float, int, int, int], addition: Addition) -> None:
        """A row: the first five numbers of it, then what the log lacks of the prompt's chain."""
        base, known, new, distances = addition
        self._hashes += new
        self._distances += distances
        self._rows.append((*numbers, base, known, len(new)))

    def _rare_row(self, decision: Decision) -> tuple[int, ...]:
        ordinary = decision.requests == 1 and decision.reads_cache
        if ordinary and not (decision.adapter or decision.exact or decision.partial):
            return _ORDINARY
        return (
            EXACT * decision.exact + PARTIAL * decision.partial + READS_NO_CACHE * (not decision.reads_cache),
            1 + self.names.adapter(decision.adapter) if decision.adapter else 0,
            decision.requests,
            decision.samples,
            whole(THOUSANDTHS * decision.prompts),
        )

    def write(self, columns: pb.Decisions, now: float) -> None:
        """Add the decisions to a batch that is published at ``now``."""
        for name, column in zip(COLUMNS, zip(*self._rows, strict=True), strict=False):
            getattr(columns, name).extend([age(at, now) for at in column] if name == "age" else column)
        for name, column in zip(RARE_COLUMNS, zip(*self._rare, strict=True), strict=False):
            if any(column):
                getattr(columns, name).extend(column)
        columns.hashes.extend(self._hashes)
        columns.distances.extend(self._distances)


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
