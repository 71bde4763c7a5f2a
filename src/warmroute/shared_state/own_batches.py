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


class OwnBatches:
    """The batches by sequence number, oldest first."""

    def __init__(self) -> None:
        self._batches: OrderedDict[int, OwnBatch] = OrderedDict()
        self._bytes = 0

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

    def to_send_again(self) -> Iterator[tuple[int, OwnBatch]]:
        """All that are kept, for a caller that sends each before it takes the next one: what is read back meanwhile is left
        out."""
        for sequence in list(self._batches):
            batch = self._batches.get(sequence)
            if batch is not None:
                yield sequence, batch
