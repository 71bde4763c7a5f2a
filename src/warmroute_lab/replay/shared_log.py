"""The log through which the pickers of a replay exchange what they decide, in virtual time."""

from __future__ import annotations

from collections.abc import Sequence

from warmroute.errors import ConfigurationError
from warmroute_lab.replay.policy import RouterPolicy

BATCH_INTERVAL = 0.02
"""Seconds between two batches of a picker, as in the product."""
DELAY = 0.002
"""Seconds from publishing a batch until the others apply it; measured on one machine: 1 ms."""


class SharedLog:
    """Passes batches between pickers as bytes, as the product's log does."""

    def __init__(self, policies: Sequence[object]) -> None:
        """Raises ConfigurationError if a policy is not the product's router with shared state."""
        self._policies = [policy for policy in policies if isinstance(policy, RouterPolicy) and policy.shared]
        if len(self._policies) != len(policies):
            raise ConfigurationError("--shared goes with the product's strategies only")
        self._on_the_way: list[tuple[RouterPolicy, float, bytes]] = []

    def publish(self, now: float) -> None:
        """Every picker publishes what it has decided since the last time."""
        for policy in self._policies:
            self._on_the_way += [(policy, now, batch) for batch in policy.publish(now)]

    def deliver(self, now: float) -> None:
        """Everybody applies what the others have published."""
        batches, self._on_the_way = self._on_the_way, []
        for sender, published_at, batch in batches:
            for policy in self._policies:
                if policy is not sender:
                    policy.apply(batch, published_at, now)
