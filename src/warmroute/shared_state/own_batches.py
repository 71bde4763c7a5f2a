"""This picker's batches until they are read back from the log, to be sent again if they may be lost. WITHOUT IO."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

MOST_UNREAD = 500
"""Batches that are kept; fewer than duplicates.WINDOW."""
MOST_UNREAD_BYTES = 8 << 20
"""Bytes of these batches."""


@dataclass(slots=True)
class OwnBatch:
    """A batch that was not read back yet. Times are monotonic seconds."""

    sealed: bytes
    sent_at: float
    """When it was sent first: the log stamped any copy of it later."""
    sent_again_at: float
    """When it was sent last."""
    lost: bool = False
    """On this connection, one that was sent later was read back first."""


class OwnBatches:
    """The batches by sequence number, in the order in which they were sent last."""

    def __init__(self) -> None:
        self._batches: OrderedDict[int, OwnBatch] = OrderedDict()
        self._bytes = 0
        self._lost: list[int] = []

    def __len__(self) -> int:
        return len(self._batches)

    def add(self, sequence: int, sealed: bytes, now: float) -> None:
        """Keep a batch that is sent now. If there are too many, the oldest ones are given up: the log may lack them."""
        self._batches[sequence] = OwnBatch(sealed, now, now)
        self._bytes += len(sealed)
        while len(self._batches) > MOST_UNREAD or self._bytes > MOST_UNREAD_BYTES:
            self.remove(next(iter(self._batches)))

    def get(self, sequence: int) -> OwnBatch | None:
        """The batch; None if it is not kept."""
        return self._batches.get(sequence)

    def remove(self, sequence: int) -> None:
        """The batch is in the log, or need not be. Nothing to do if it is not kept."""
        batch = self._batches.pop(sequence, None)
        if batch is not None:
            self._bytes -= len(batch.sealed)

    def read_back(self, sequence: int) -> None:
        """The batch is in the log. The log keeps the order of a connection, so those that were sent before are lost."""
        for earlier, batch in self._batches.items():
            if earlier == sequence:
                break
            if not batch.lost:
                batch.lost = True
                self._lost.append(earlier)
        self.remove(sequence)

    def lost(self) -> Iterator[tuple[int, OwnBatch]]:
        """Those that were found lost since the last call, to be sent again. Each comes once for each connection: what the
        log never stores does not come again and again."""
        lost, self._lost = self._lost, []
        for sequence in lost:
            batch = self._batches.get(sequence)
            if batch is not None:
                self._batches.move_to_end(sequence)
                yield sequence, batch

    def to_send_again(self) -> Iterator[tuple[int, OwnBatch]]:
        """All that are kept, for a caller that sends each on a new connection before it takes the next one: what is read
        back meanwhile is left out."""
        self._lost.clear()
        for sequence, batch in list(self._batches.items()):
            if sequence in self._batches:
                batch.lost = False
                yield sequence, batch
