"""The virtual queue: prompts sent to one endpoint and not computed yet, by the times at which they should be.

A scraped gauge is up to one scrape interval old: every request of the next milliseconds would go to the endpoint that was
idle then. So each decision enters the queue at once: a prompt is computed at ``max(now, busy_until) + work / rate``, first
come, first served. Entries leave when their time has passed, so every entry leaves. Each scrape corrects the queue:

========================  ================================================  ==============================================
the engine exports        entries kept                                      bounds on the number of entries
========================  ================================================  ==============================================
counters of first tokens  the latest assigned, with new finish times from   ``awaiting <= entries <= awaiting + unseen``
                          the time of the scrape
gauges only               those whose finish time has not passed            ``waiting <= entries``, and at most
                                                                            ``waiting + sent since + queue_slack`` and
                                                                            ``running + waiting + unseen``
nothing for 30 s          those assigned within the last 30 s               none
========================  ================================================  ==============================================

``awaiting``: requests on the engine without a first token. ``unseen``: requests sent so shortly before the scrape that
the engine may not show them yet.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from itertools import accumulate, repeat
from math import inf
from operator import truediv

from warmroute.pool.endpoint import MOST_REQUESTS

ASSUMED_DURATION = 30.0
"""Seconds after which a request counts as finished if neither a scrape nor its response says otherwise. An
assumption."""
LEAST_REMAINING = 0.25
"""Least share of its work that the first entry still has while it has no token: no counter shows its progress."""
STEP_TOKENS = 8192
"""Prompt tokens of an engine's longest step (vLLM's default ``max_num_batched_tokens`` for the API server on large
GPUs). A request shows in the gauges only after the step during which it came."""
TRANSIT = 0.05
"""Seconds from a decision until the engine's scheduler has the request. An assumption; it only delays a correction."""
MOST_ASSIGNED = 1024
"""Assigned requests that are remembered as possibly without a token."""


class _Untracked:
    """Requests of other clients at the head of the queue: equal work, one after the other. O(1) for any number of them."""

    __slots__ = ("_at", "_count", "_rate", "_work", "left", "next_finish")

    def __init__(self, count: int, at: float, work: float, rate: float) -> None:
        self._count = count
        self._at = at
        self._work = work
        self._rate = rate
        self.left = count
        self.next_finish = self._finish(0)
        """When the first of those left should be computed."""

    def expire(self, now: float) -> None:
        """Drop those that should be computed by ``now``."""
        if now < self.next_finish:
            return
        if self.last_finish <= now:
            self.left = 0
            return
        done = int((now - self._at) * self._rate / self._work)
        if self._finish(done) <= now:  # rounding
            done += 1
        elif done and self._finish(done - 1) > now:
            done -= 1
        self.left = self._count - done
        self.next_finish = self._finish(done)

    @property
    def last_finish(self) -> float:
        """When the last of them should be computed."""
        return self._finish(self._count - 1)

    def _finish(self, k: int) -> float:
        return self._at + (k + 1) * self._work / self._rate


class VirtualQueue:
    """Prompts that one endpoint has to compute. Times are monotonic seconds, work is in tokens, rates in tokens a
    second."""

    __slots__ = ("_busy_until", "_done_at", "_finish_times", "_first_tokens", "_untracked", "_work", "assigned_at")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """The engine is a new process: nothing is queued."""
        self.assigned_at: deque[float] = deque(maxlen=MOST_ASSIGNED)
        """When each request was assigned that may be without a token, oldest first."""
        self._work: deque[float] = deque(maxlen=MOST_ASSIGNED)
        """The work of each of them in tokens."""
        self._done_at: deque[float] = deque(maxlen=MOST_ASSIGNED)
        """When each of them should be computed."""
        self._finish_times: deque[float] = deque(maxlen=MOST_REQUESTS)
        self._untracked: _Untracked | None = None
        self._busy_until = 0.0
        self._first_tokens: float | None = None
        """The engine's counter of first tokens at the last scrape; None if that scrape had none."""

    def __len__(self) -> int:
        return len(self._finish_times) + (self._untracked.left if self._untracked is not None else 0)

    def assign(self, work: float, rate: float, now: float, *, requests: int = 1) -> None:
        """Requests of ``work`` tokens each go to the endpoint, which computes ``rate`` tokens per second."""
        for _ in range(requests):
            self._append(work / rate, now)
        self.assigned_at.extend([now] * requests)
        self._work.extend([work] * requests)

    def expire(self, now: float) -> None:
        """Drop the entries that should be computed by ``now``."""
        if self._untracked is not None:
            self._untracked.expire(now)
            if self._untracked.left:
                return
            self._untracked = None
        finish_times = self._finish_times
        while finish_times and finish_times[0] <= now:
            finish_times.popleft()

    def expire_unobserved(self, now: float, rate: float) -> None:
        """Drop what was assigned :data:`ASSUMED_DURATION` ago: the engine has reported nothing for that long."""
        self._drop(now, rate, assigned_by=now - ASSUMED_DURATION, sent_since=0, most=inf, most_forgotten=MOST_ASSIGNED)

    def correct_by_gauges(self, at: float, rate: float, *, running: int, waiting: int, sent_since: int) -> None:
        """Drop what cannot be on an engine that had these requests at ``at``. ``sent_since``: requests sent after
        that."""
        self._first_tokens = None
        self._drop(
            at,
            rate,
            assigned_by=-inf if waiting else at - ASSUMED_DURATION,
            sent_since=sent_since,
            most=running + waiting + self._unseen(at, rate),
        )

    def correct_by_first_tokens(
        self, at: float, rate: float, *, awaiting: int, first_tokens: float | None, mean_work: float
    ) -> None:
        """Rebuild the queue of an engine that had ``awaiting`` requests without a first token at ``at``.

        First come, first served: those without a token are the latest that were assigned, less one for each first token
        since the last scrape. If the engine has more than those, they are untracked: other clients sent them, before
        ours.
        """
        known = self._assigned_by(at)
        left = known
        if self._first_tokens is not None and first_tokens is not None:
            left -= int(first_tokens - self._first_tokens)
        self._first_tokens = first_tokens
        entries = min(max(left, awaiting), awaiting + self._unseen(at, rate))
        for _ in range(known - entries):
            self._pop()
        self._rebuild(at, rate, untracked=max(0, entries - known), mean_work=mean_work)

    def estimate(
        self, rate: float, at_least: float, at_most: float, mean_work: float
    ) -> tuple[float, float, float, float]:
        """Waiting requests, ``pending_at_zero``, ``pending_rate``, and when the next entry leaves.

        The work at time ``t`` is ``pending_at_zero - t * pending_rate`` tokens, so that it need not be computed again as
        time passes. The bounds come from gauges; a queue that was corrected by counters of first tokens needs none.
        """
        finish_times, untracked = self._finish_times, self._untracked
        waiting = float(len(finish_times))
        until = finish_times[0] if finish_times else inf
        if untracked is not None:
            waiting += untracked.left
            until = untracked.next_finish
        rate = rate if waiting else 0.0
        pending_at_zero = self._busy_until * rate
        if self._first_tokens is not None or at_least <= waiting <= at_most:
            return waiting, pending_at_zero, rate, until
        if waiting > at_most:  # the endpoint is faster than estimated
            share = at_most / waiting
            return at_most, pending_at_zero * share, rate * share, until
        # It is slower, or other clients send to it too.
        return at_least, pending_at_zero + (at_least - waiting) * mean_work, rate, until

    def _unseen(self, at: float, rate: float) -> int:
        """Requests that the engine may not have shown at ``at`` though they were sent before."""
        return self._assigned_by(at) - self._assigned_by(at - TRANSIT - STEP_TOKENS / rate)

    def _assigned_by(self, at: float) -> int:
        """Requests of :attr:`assigned_at` that were assigned by ``at``."""
        return bisect_right(self.assigned_at, at)

    def _pop(self) -> None:
        self.assigned_at.popleft()
        self._work.popleft()
        self._done_at.popleft()

    def _drop(
        self, at: float, rate: float, *, assigned_by: float, sent_since: int, most: float, most_forgotten: int = 0
    ) -> None:
        """Drop what is computed at ``at``, what was assigned by ``assigned_by``, and the oldest beyond ``most``.

        Rebuild the queue if that changes it, or if more than ``most_forgotten`` of its entries are not remembered in
        ``assigned_at`` any more: then it is that long because the endpoint is faster than estimated.
        """
        assigned, done_at = self.assigned_at, self._done_at
        while done_at and done_at[0] <= at:
            self._pop()
        self.expire(at)
        before = len(assigned)
        while assigned and (len(assigned) - sent_since > most or assigned[0] <= assigned_by):
            self._pop()
        if len(assigned) < before or len(self) > len(assigned) + most_forgotten:
            self._rebuild(at, rate)

    def _rebuild(self, at: float, rate: float, *, untracked: int = 0, mean_work: float = 0.0) -> None:
        """New finish times from ``at`` on: untracked requests of ``mean_work`` each, then those in ``assigned_at``."""
        self._untracked = _Untracked(untracked, at, mean_work, rate) if untracked else None
        self._busy_until = self._untracked.last_finish if self._untracked is not None else at
        before = self._assigned_by(at)
        seconds = list(map(truediv, self._work, repeat(rate)))
        if before and not untracked:  # the first one is being computed
            seconds[0] = min(max(self._done_at[0] - at, LEAST_REMAINING * seconds[0]), seconds[0])
        finish_times = list(accumulate(seconds[:before], initial=self._busy_until))  # they follow each other
        self._busy_until = finish_times[-1]
        self._finish_times = deque(finish_times[1:], MOST_REQUESTS)
        self._done_at = deque(finish_times[1:], MOST_ASSIGNED)
        for k in range(before, len(seconds)):
            self._append(seconds[k], self.assigned_at[k])

    def _append(self, seconds: float, at: float) -> None:
        """Enter the finish time of a request that comes at ``at`` and takes ``seconds``."""
        start = self._busy_until if self._busy_until > at else at
        self._busy_until = start + seconds
        self._finish_times.append(self._busy_until)
        self._done_at.append(self._busy_until)
