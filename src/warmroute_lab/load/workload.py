"""The multi-round workload: which user asks what, and when. WITHOUT IO."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf

import orjson

from warmroute.errors import ConfigurationError
from warmroute_lab.load.conversations import Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The users' behaviour. Prompt lengths are in words; for most tokenizers a word is one token."""

    num_users: int = 8
    """Concurrent users."""
    num_rounds: int = 5
    """Questions of each user."""
    qps: float = 0.5
    """Requests per second of all users together."""
    shared_system_prompt: int = 100
    """Words of the system prompt that all users share."""
    user_history_prompt: int = 2000
    """Words of each user's own context."""
    answer_len: int = 100
    """``max_tokens`` of each request."""
    model: str = "/model/qwen"
    init_user_id: int = 0
    """Users are numbered from this number plus 1. Users with different numbers share only the system prompt."""
    seconds: float | None = None
    """Duration of the load. None: each of ``num_users`` users asks all its questions once, and no user is replaced."""
    conversations: tuple[tuple[Turn, ...], ...] = ()
    """Recorded questions. Empty: synthetic ones."""
    salt: str = ""
    """Text before each user's first question. Loads with different salts share no prefix. Empty: LMCache's prompts."""

    def __post_init__(self) -> None:
        for name in ("num_users", "num_rounds", "qps", "answer_len"):
            if not 0 < getattr(self, name) < inf:
                raise ConfigurationError(f"--{name.replace('_', '-')} must be more than 0 and finite")
        if self.seconds is not None and not 0 < self.seconds < inf:
            raise ConfigurationError("--time must be more than 0 and finite")

    @property
    def gap(self) -> float:
        """Seconds between two questions of one user."""
        return self.num_users / self.qps

    @property
    def planned_requests(self) -> int:
        """Number of requests if no answer takes longer than :attr:`gap`."""
        if self.seconds is None:
            return self.num_users * self.num_rounds
        return sum(1 for _ in self.schedule())

    def visits(self) -> Iterator[Visit]:
        """The users in order of their arrival.

        With ``seconds``, the request rate is constant from the start: the first users begin in the middle of their rounds,
        as if they had joined earlier.
        """
        if self.seconds is None:
            for i in range(self.num_users):
                yield Visit(self.init_user_id + i + 1, i / self.qps, 0)
            return
        join_gap = self.gap * max(self.num_rounds - 1, 1) / self.num_users
        for i in itertools.count():
            joined = (i - self.num_users) * join_gap
            if joined >= self.seconds:
                return
            missed = int(-joined / self.gap) + 1 if joined < 0 else 0
            if missed < self.num_rounds:
                yield Visit(self.init_user_id + i + 1, joined + missed * self.gap, missed)

    def schedule(self) -> Iterator[tuple[float, int, int]]:
        """Seconds from the start, user and round of each request, if no answer takes longer than :attr:`gap`."""
        for visit in self.visits():
            for i, round_index in enumerate(range(visit.first_round, self.num_rounds)):
                at = visit.first_at + i * self.gap
                if self.seconds is None or at < self.seconds:
                    yield at, visit.user_id, round_index

    def opening(self, user_id: int) -> str:
        """The text before a user's first question: salt, shared system prompt, the user's own context."""
        salt = f"Run {self.salt}. " if self.salt else ""
        return (
            f"{salt}Hi, here's some system prompt: {_words(self.shared_system_prompt)}."
            f"For user {user_id}, here are some other context: {_words(self.user_history_prompt)}."
        )

    def turn(self, user_id: int, round_index: int) -> Turn:
        """The question of a round, counted from 0."""
        if self.conversations:
            turns = self.conversations[user_id % len(self.conversations)]
            if round_index < len(turns):
                return turns[round_index]
        return Turn(
            f"Question {round_index + 1}: what happens next in the story, and how does it end well for everybody?"
        )

    def body(self, user_id: int, round_index: int, history: Sequence[dict[str, str]]) -> bytes:
        """The request's body. ``history`` ends with the question."""
        recorded = self.turn(user_id, round_index).answer_tokens
        request = {
            "max_tokens": self.answer_len if recorded is None else max(1, min(recorded, self.answer_len)),
            "messages": history,
            "model": self.model,
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0,
        }
        return orjson.dumps(request)


@dataclass(frozen=True, slots=True)
class Visit:
    """One user: the time of its first question in seconds from the start, and the round of that question, counted from 0."""

    user_id: int
    first_at: float
    first_round: int


def _words(count: int) -> str:
    return " ".join(["hi"] * count)
