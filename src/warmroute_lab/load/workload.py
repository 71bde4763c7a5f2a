"""The multi-round workload: which user asks what, and when. It sends nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import orjson

from warmroute.errors import ConfigurationError
from warmroute_lab.load.conversations import Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What the users do. Lengths of prompts are in words, which are a token each for most tokenizers."""

    num_users: int = 8
    """Users at any one time."""
    num_rounds: int = 5
    """Questions of one user."""
    qps: float = 0.5
    """Requests per second of all users together."""
    shared_system_prompt: int = 100
    """Words of the system prompt that all users share."""
    user_history_prompt: int = 2000
    """Words of context that each user has for itself."""
    answer_len: int = 100
    """``max_tokens`` of each request."""
    model: str = "/model/qwen"
    init_user_id: int = 0
    """Number of the first user; runs with different numbers share the system prompt only."""
    seconds: float | None = None
    """For how long requests are sent. None: each of ``num_users`` users asks all of its questions, and nobody else joins."""
    conversations: tuple[tuple[Turn, ...], ...] = ()
    """Recorded questions; none: synthetic ones."""

    def __post_init__(self) -> None:
        for name in ("num_users", "num_rounds", "qps", "answer_len"):
            if getattr(self, name) <= 0:
                raise ConfigurationError(f"--{name.replace('_', '-')} must be more than 0")
        if self.seconds is not None and self.seconds <= 0:
            raise ConfigurationError("--time must be more than 0")

    @property
    def gap(self) -> float:
        """Seconds between two questions of one user."""
        return self.num_users / self.qps

    @property
    def planned_requests(self) -> int:
        """Requests that are sent if the server keeps pace."""
        if self.seconds is None:
            return self.num_users * self.num_rounds
        return sum(1 for _ in self.schedule())

    def visits(self) -> Iterator[Visit]:
        """The users in the order in which they come.

        With ``seconds``, the load is even from the start on: users that would have joined before it are there already and
        begin in the middle of their rounds.
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
        """Earliest time, user and round of each request, if no answer takes longer than the gap."""
        for visit in self.visits():
            for i, round_index in enumerate(range(visit.first_round, self.num_rounds)):
                at = visit.first_at + i * self.gap
                if self.seconds is None or at < self.seconds:
                    yield at, visit.user_id, round_index

    def opening(self, user_id: int) -> str:
        """What stands before a user's first question: the shared system prompt and the user's own context."""
        return (
            f"Hi, here's some system prompt: {_words(self.shared_system_prompt)}."
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
        """The request's JSON: ``history`` ends with the question."""
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
    """One user: when it asks first, in seconds from the start, and with which of its rounds it begins."""

    user_id: int
    first_at: float
    first_round: int


def _words(count: int) -> str:
    return " ".join(["hi"] * count)
