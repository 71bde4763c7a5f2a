"""Recorded conversations, from ShareGPT files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from warmroute.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Turn:
    """A question of a recorded conversation, and the length of its answer in tokens if known."""

    question: str
    answer_tokens: int | None = None


def read_conversations(path: Path) -> tuple[tuple[Turn, ...], ...]:
    """The questions of a ShareGPT file, see :func:`conversations_in`. Raises ConfigurationError."""
    try:
        return conversations_in(path.read_text(encoding="utf-8"), path)
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
        conversations = []
        for entry in entries:
            turns: list[Turn] = []
            for said in entry["conversations"]:
                if said.get("from", "human") in {"human", "user"}:
                    turns.append(Turn(str(said["value"])))
                elif turns:
                    tokens = said.get("num_tokens")
                    turns[-1] = Turn(turns[-1].question, None if tokens is None else int(tokens))
            if turns:
                conversations.append(tuple(turns))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no field {error}" if isinstance(error, KeyError) else str(error)
        raise ConfigurationError(f"{path} is not a ShareGPT file: {reason}") from error
    if not conversations:
        raise ConfigurationError(f"{path} has no conversation with a human turn")
    return tuple(conversations)
