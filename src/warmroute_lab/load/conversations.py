"""Recorded conversations, from ShareGPT files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from warmroute.errors import ConfigurationError

MOST_TOKENS = 100_000_000
"""A number of tokens above this is a mistake of the file."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A question of a recorded conversation, and the length of its answer in tokens if known."""

    question: str
    answer_tokens: int | None = None


def read_conversations(path: Path) -> tuple[tuple[Turn, ...], ...]:
    """The questions of a ShareGPT file, see :func:`conversations_in`. Raises ConfigurationError."""
    try:
        return conversations_in(path.read_text(encoding="utf-8-sig"), path)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not a ShareGPT file: {error}") from error


def conversations_in(text: str, path: Path) -> tuple[tuple[Turn, ...], ...]:
    """The questions of a ShareGPT file: a JSON list of ``{"conversations": [{"from", "value", "num_tokens"?}, ...]}``.

    Conversations without a human turn are skipped. Raises ConfigurationError, naming ``path``, if none is left.
    """
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigurationError(
            f"{path}:{error.lineno} is no JSON: {error}. A ShareGPT file is one JSON list: {_EXPECTED}"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or deep nesting
        raise ConfigurationError(f"{path} is not a ShareGPT file: {error}") from error
    if not isinstance(entries, list):
        raise ConfigurationError(f"{path} is not a ShareGPT file: a JSON list is expected: {_EXPECTED}")
    conversations = []
    for number, entry in enumerate(entries, 1):
        try:
            turns = _turns(entry)
        except ValueError as error:
            raise ConfigurationError(
                f"{path} is not a ShareGPT file: entry {number} of its list: {error}: {_EXPECTED}"
            ) from error
        if turns:
            conversations.append(tuple(turns))
    if not conversations:
        raise ConfigurationError(f"{path} has no conversation with a human turn")
    return tuple(conversations)


def _turns(entry: object) -> list[Turn]:
    """The human turns of a conversation. Raises ValueError."""
    messages = entry.get("conversations") if isinstance(entry, dict) else None
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError("an object with a list of messages is expected")
    turns: list[Turn] = []
    for said in messages:
        if said.get("from", "human") in {"human", "user"}:
            if "value" not in said:
                raise ValueError("a message has no value")
            turns.append(Turn(str(said["value"])))
        elif turns:
            turns[-1] = Turn(turns[-1].question, _tokens(said.get("num_tokens")))
    return turns


def _tokens(number: object) -> int | None:
    """The length of an answer, if it is known. Raises ValueError."""
    try:
        tokens = None if number is None else int(number)  # type: ignore[call-overload]
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"num_tokens is not a number: {number!r:.60}") from None
    if tokens is not None and tokens > MOST_TOKENS:
        raise ValueError(f"num_tokens is too large: {number!r:.60}")
    return tokens


_EXPECTED = '[{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}]'
