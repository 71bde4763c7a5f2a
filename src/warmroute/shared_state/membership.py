"""The live pickers, and which of them scrapes which engine. WITHOUT IO.

A picker is live while its batches come. Each engine belongs to the live picker with the highest hash of picker and endpoint
(rendezvous hashing): pickers that know the same members agree without a word, and a member that joins or leaves moves only
its own share.
"""

from __future__ import annotations

from xxhash import xxh3_64_intdigest

HEARTBEAT = 0.5
"""Seconds between two batches of a picker that has nothing to say."""
SILENCE = 1.6
"""Seconds without a batch after which a picker counts as gone: three heartbeats, less than the 2 s within which its engines
must be scraped again."""
MOST_PICKERS = 256
"""Members; more are not counted."""
MOST_OWNERS = 4096
"""Endpoints whose owner is remembered; beyond them it is found again."""


class Membership:
    """The live pickers by id, this one included. Times are monotonic seconds."""

    def __init__(self, own: int) -> None:
        self._own = own
        self._heard: dict[int, float] = {}
        self._owners: dict[str, int] = {}

    @property
    def alive(self) -> int:
        """The number of live pickers, this one included."""
        return len(self._heard) + 1

    def has(self, picker: int) -> bool:
        """Whether it is another live picker."""
        return picker in self._heard

    def heard(self, picker: int, at: float) -> None:
        """A batch of the picker came, published at ``at``."""
        known = self._heard.get(picker)
        if picker == self._own or (known is None and len(self._heard) >= MOST_PICKERS):
            return
        if known is None:
            self._owners.clear()
        self._heard[picker] = at if known is None else max(at, known)

    def left(self, picker: int) -> None:
        """The picker has said that it ends."""
        if self._heard.pop(picker, None) is not None:
            self._owners.clear()

    def expire(self, now: float) -> None:
        """Drop the pickers that were not heard for :data:`SILENCE`."""
        for picker in [picker for picker, at in self._heard.items() if at < now - SILENCE]:
            self.left(picker)

    def owns(self, endpoint: str) -> bool:
        """Whether this picker scrapes the endpoint, given by its id."""
        owner = self._owners.get(endpoint)
        if owner is None:
            if len(self._owners) >= MOST_OWNERS:  # many have left the pool
                self._owners.clear()
            name = endpoint.encode()
            owner = max((self._own, *self._heard), key=lambda picker: (xxh3_64_intdigest(name, picker), picker))
            self._owners[endpoint] = owner
        return owner == self._own
