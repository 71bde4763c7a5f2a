"""Metrics and health detail of the state that pickers share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import Metric

from warmroute.observability import series


@dataclass(frozen=True, slots=True)
class SharedStateReading:
    """The shared state of this picker at one time. Times are seconds, counts are totals."""

    away_seconds: float | None
    """How long the log has been away; None: it is there."""
    why_away: str
    pickers: int
    scrape_share: float
    lag: float
    replay_seconds: float
    batches_out: int
    batches_in: int
    bytes_out: int
    bytes_in: int
    applied: Mapping[str, int]
    skipped: Mapping[str, int]

    def families(self) -> Iterator[Metric]:
        """The metrics."""
        away = self.away_seconds
        yield series.SHARED_STATE_CONNECTED.family([((), float(away is None))])
        yield series.SHARED_STATE_PICKERS.family([((), self.pickers)])
        yield series.SHARED_STATE_SCRAPE_SHARE.family([((), self.scrape_share)])
        yield series.SHARED_STATE_LAG.family([((), self.lag if away is None else away)])
        yield series.SHARED_STATE_REPLAY_SECONDS.family([((), self.replay_seconds)])
        yield series.SHARED_STATE_BATCHES.family([(("out",), self.batches_out), (("in",), self.batches_in)])
        yield series.SHARED_STATE_BYTES.family([(("out",), self.bytes_out), (("in",), self.bytes_in)])
        yield series.SHARED_STATE_APPLIED.family([((kind,), count) for kind, count in self.applied.items()])
        yield series.SHARED_STATE_SKIPPED.family([((why,), count) for why, count in self.skipped.items()])

    def health(self) -> str:
        """One line for /healthz."""
        if self.away_seconds is None:
            pickers = "1 picker" if self.pickers == 1 else f"{self.pickers} pickers"
            return f"shared state: connected, {pickers}"
        return f"shared state: away for {self.away_seconds:.0f} s, serving with what is known: {self.why_away}"
