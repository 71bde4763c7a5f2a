"""Traces in files: Mooncake's format, Alibaba's, OpenAI bodies with times, and ShareGPT's.

Requests that name a session can be replayed in a *closed loop*: each turn waits for the answer to the turn before it and
then for the recorded think time. In an *open loop* every request is sent at its recorded time.
"""

from __future__ import annotations

import io
import json
import lzma
import random
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from math import isfinite, nan
from pathlib import Path
from typing import Any

from xxhash import xxh3_64_intdigest

from warmroute.errors import ConfigurationError
from warmroute.prefix.chain import MIN_STEP, STEP_SHARE, build
from warmroute.request.inference import InferenceRequest
from warmroute.request.parse import parse
from warmroute.request.rejections import Rejection
from warmroute_lab.load.conversations import MOST_TOKENS, conversations_in
from warmroute_lab.replay.compressed_file import open_trace
from warmroute_lab.replay.trace import (
    BYTES_PER_TOKEN,
    PIECE,
    Identities,
    Trace,
    TracedRequest,
    conversation,
    sorted_by_time,
)
from warmroute_lab.simulator.blocks import Segment

MOONCAKE_BUCKET = 3.0
"""Mooncake's timestamps are rounded down to multiples of this, in seconds."""
ALIBABA_BLOCK = 16
"""Tokens for each hash id of Alibaba's traces."""
SHAREGPT_RATE = 10.0
"""Conversations of a ShareGPT file that begin per second at a speedup of 1."""
SHAREGPT_PAUSE = 10.0
"""Mean seconds between an answer and the next question of a ShareGPT conversation."""
UNKNOWN_ANSWER = 200
"""Tokens of an answer whose length is not in the file."""

_EXPECTED = (
    "A trace has one JSON object a line: "
    "a request of Mooncake's format or of Alibaba's, or an OpenAI body with a timestamp"
)
SHOWN = 60
"""Characters of a wrong value that a message shows."""


@dataclass(slots=True)
class _Line:
    """One request of a file, in seconds and tokens."""

    at: float
    prompt: tuple[Segment, ...]
    output_tokens: int
    session: str
    """Requests of one session follow each other; empty: the file names no session."""
    think: float


def read(path: Path, *, seed: int, limit: int | None = None, skip: int = 0, closed_loop: bool = True) -> Trace:
    """The trace in a file.

    ``limit`` is the number of requests to keep: those after the first ``skip``, which is counted round; or, in a closed
    loop, about as many in whole sessions that the seed draws, which begin as often as the sessions of the file do.

    Raises ConfigurationError if the file cannot be read, naming the line.
    """
    rng = random.Random(seed)
    name = path.name.partition(".")[0]
    try:
        with open_trace(path) as file:
            first = file.readline().removeprefix(BOM_UTF8)
            if first.lstrip().startswith(b"["):
                _refuse_list(path, first)
                return _trace(name, _sharegpt((first + file.read()).decode(), path, rng)[:limit])
            lines = sorted(_lines(path, first, file, rng), key=lambda line: line.at)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, lzma.LZMAError) as error:
        raise ConfigurationError(f"cannot read the trace {path}: {error}") from error
    if closed_loop and any(line.session for line in lines):
        return _trace(name, _in_sessions(lines if limit is None else _sample(lines, limit, rng)), recorded=True)
    began = skip % max(1, len(lines) - limit) if limit is not None else 0
    kept = lines if limit is None else lines[began : began + limit]
    return _trace(name, [TracedRequest(line.at, line.prompt, line.output_tokens) for line in kept])


def _refuse_list(path: Path, line: bytes) -> None:
    """Raise ConfigurationError if the first line is a whole list without an object: it does not begin a ShareGPT file."""
    try:
        entries = json.loads(line)
    except (ValueError, RecursionError):  # the list goes on; or it is no JSON, which the reader of such files says
        return
    if entries and not any(isinstance(entry, dict) for entry in entries):
        raise ConfigurationError(f"{path}:1 is not a request of a trace: it is a list. {_EXPECTED}")


def _trace(name: str, requests: Sequence[TracedRequest], *, recorded: bool = False) -> Trace:
    if not requests:
        raise ConfigurationError(f"the trace {name} has no requests")
    began = requests[0].at
    for request in requests:
        request.at -= began
    return Trace(name, requests, recorded)


def _lines(path: Path, first: bytes, file: io.BufferedIOBase, rng: random.Random) -> Iterator[_Line]:
    """The requests of a file with one JSON object a line."""
    first_chats: dict[float, float] = {}
    for number, line in enumerate(chain((first,), file), 1):
        if not line or line.isspace():
            continue
        try:
            entry = json.loads(line.decode().rstrip())
            if not isinstance(entry, dict):
                raise ValueError("it is no JSON object")
            if "hash_ids" not in entry:
                yield _body(entry)
            else:
                yield _alibaba(entry, first_chats) if "parent_chat_id" in entry else _mooncake(entry, rng)
        except json.JSONDecodeError as error:
            raise ConfigurationError(f"{path}:{number} is no JSON: {error}. {_EXPECTED}") from error
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"{path}:{number} is not UTF-8: {error}") from error
        except RecursionError as error:
            raise ConfigurationError(f"{path}:{number} is not a request of a trace: it is nested too deeply") from error
        except (ValueError, KeyError) as error:
            reason = f"it has no field {error}" if isinstance(error, KeyError) else str(error)
            raise ConfigurationError(f"{path}:{number} is not a request of a trace: {reason}") from error


def _mooncake(entry: dict[str, Any], rng: random.Random) -> _Line:
    """``{"timestamp": ms, "input_length", "output_length", "hash_ids": [one per 512 tokens]}``.

    Optional: ``session``, ``agent`` (a session may run several at once) and ``think_ms``. Times of requests without a
    session are spread over Mooncake's bucket. Format: https://github.com/kvcache-ai/Mooncake.
    """
    tokens, output = _lengths(entry)
    ids = _hash_ids(entry, tokens, output, PIECE)
    session = _session(entry, "agent") or _session(entry, "session")
    return _Line(
        _number(entry, "timestamp") / 1000 + (0.0 if session else MOONCAKE_BUCKET * rng.random()),
        tuple((identity, min(PIECE, tokens - i * PIECE)) for i, identity in enumerate(ids)),
        output,
        session,
        _think_seconds(entry),
    )


def _alibaba(entry: dict[str, Any], first_chats: dict[float, float]) -> _Line:
    """``{"chat_id", "parent_chat_id", "timestamp": s, "input_length", "output_length", "hash_ids": [one per 16 tokens]}``.

    The parent of a first turn is -1. A first turn and all that follow from it are a session; think times are not recorded.
    ``first_chats`` has the first turn of each chat that was read.
    Format: https://github.com/alibaba-edu/qwen-bailian-usagetraces-anon.
    """
    tokens, output = _lengths(entry)
    chat, parent = _number(entry, "chat_id"), _number(entry, "parent_chat_id")
    first = first_chats[chat] = chat if parent == -1 else first_chats.get(parent, parent)
    blocks = _hash_ids(entry, tokens, output, ALIBABA_BLOCK)
    return _Line(_number(entry, "timestamp"), _joined(blocks, tokens), output, f"{first:.0f}", 0.0)


def _joined(blocks: Sequence[int], tokens: int) -> tuple[Segment, ...]:
    """Blocks of :data:`ALIBABA_BLOCK` tokens as pieces that grow with the position, as the product's checkpoints do: short
    ones where prompts branch, and not more of them than the product would have."""
    pieces, start = [], 0
    for stop in _ends(len(blocks)):
        identity = xxh3_64_intdigest(repr(blocks[start:stop]).encode()) - (1 << 63)
        pieces.append((identity, min(stop * ALIBABA_BLOCK, tokens) - start * ALIBABA_BLOCK))
        start = stop
    return tuple(pieces)


def _ends(blocks: int) -> Iterator[int]:
    """Where pieces end, in blocks of :data:`ALIBABA_BLOCK` tokens, the last one at the end of the prompt."""
    end, least, most = 0, MIN_STEP // BYTES_PER_TOKEN // ALIBABA_BLOCK, PIECE // ALIBABA_BLOCK
    while end < blocks:
        end = min(end + min(max(least, end // STEP_SHARE), most), blocks)
        yield end


def _body(entry: dict[str, Any]) -> _Line:
    """``{"timestamp": seconds or ISO 8601, "body": {an OpenAI request}}``, or the request with a timestamp among its fields.

    Optional: ``path`` of the request, ``output_tokens`` (else the body's limit, at most :data:`UNKNOWN_ANSWER`), ``session``
    and ``think_ms``. The product's parser reads the body; its checkpoints are the pieces.
    """
    at = _time(entry)
    body = entry.get("body", entry)
    if not isinstance(body, dict):
        raise ValueError("its body is no JSON object")
    path = entry.get("path") or next((path for field, path in _PATHS.items() if field in body), "")
    if not isinstance(path, str):
        raise ValueError(f"its field path is no text: {_shown(path)}")
    request = parse(path, "application/json", json.dumps(body).encode())
    if isinstance(request, Rejection):
        raise ValueError(request.message)
    prompt = _pieces(request)
    if not prompt:
        raise ValueError("its body has no prompt")
    if entry.get("output_tokens") is not None:
        output = _tokens(entry, "output_tokens")
    else:
        output = min(request.max_tokens or UNKNOWN_ANSWER, UNKNOWN_ANSWER)
    return _Line(at, prompt, max(1, output), _session(entry, "session"), _think_seconds(entry))


def _lengths(entry: dict[str, Any]) -> tuple[int, int]:
    """Tokens of the prompt and of the answer, 1 at least."""
    tokens = _tokens(entry, "input_length")
    if tokens < 1:
        raise ValueError("input_length must be at least 1")
    return tokens, max(1, _tokens(entry, "output_length"))


def _hash_ids(entry: dict[str, Any], tokens: int, output: int, block: int) -> list[int]:
    """The ids of the prompt, one for each ``block`` tokens. Those of the answer may follow. A longer list is one of smaller
    blocks, which would pass for a prompt of which other parts are shared."""
    ids = entry["hash_ids"]
    count, most = -(-tokens // block), -(-(tokens + output) // block)
    if not isinstance(ids, list) or not count <= len(ids) <= most:
        length = f", not {len(ids)}" if isinstance(ids, list) else ""
        raise ValueError(
            f"its field hash_ids must be a list of an id for each {block} tokens of input_length, {count} here{length}"
        )
    for each in ids:
        if type(each) is not int or not -(1 << 63) <= each < 1 << 64:
            raise ValueError(f"its field hash_ids has an id that is no integer of 64 bits: {_shown(each)}")
    return ids[:count]


def _session(entry: dict[str, Any], field: str) -> str:
    """The name of the session in a field; empty without one."""
    name = entry.get(field)
    return "" if name is None else str(name)


def _time(entry: dict[str, Any]) -> float:
    """The field ``timestamp`` in seconds."""
    when = entry["timestamp"]
    if not isinstance(when, str):
        return _number(entry, "timestamp")
    try:
        return datetime.fromisoformat(when).timestamp()
    except ValueError:
        raise ValueError(f"its field timestamp is neither seconds nor a time of ISO 8601: {_shown(when)}") from None


def _think_seconds(entry: dict[str, Any]) -> float:
    """The think time. A negative one is that of a request that was sent before the answer came: none."""
    return max(0.0, _number(entry, "think_ms") / 1000) if entry.get("think_ms") is not None else 0.0


def _tokens(entry: dict[str, Any], field: str) -> int:
    """The number of tokens in a field. Raises as :func:`_number` does, and ValueError for one that no request has."""
    number = _number(entry, field)
    if number > MOST_TOKENS:
        raise ValueError(f"its field {field} is too large: {_shown(entry[field])}")
    return int(number)


def _number(entry: dict[str, Any], field: str) -> float:
    """The number in a field. Raises KeyError without the field, ValueError if it is no finite number."""
    try:
        number = nan if isinstance(entry[field], bool) else float(entry[field])
    except (ValueError, TypeError, OverflowError):
        number = nan
    if not isfinite(number):
        raise ValueError(f"its field {field} is not a number: {_shown(entry[field])}")
    return number


def _shown(value: Any) -> str:
    return json.dumps(value)[:SHOWN]


_PATHS = {"messages": "/v1/chat/completions", "prompt": "/v1/completions", "input": "/v1/responses"}
"""Paths of requests by the field that holds their prompt."""


def _pieces(request: InferenceRequest) -> tuple[Segment, ...]:
    """The prompt from checkpoint to checkpoint, each piece known by the hash of the prompt up to its end."""
    checkpoints = build(request.seed, request.parts)
    pieces, tokens = [], 0
    for identity, end in zip(checkpoints.hashes, checkpoints.ends, strict=True):
        before, tokens = tokens, max(1, end // BYTES_PER_TOKEN)
        if tokens > before:
            pieces.append((identity - (1 << 63), tokens - before))
    return tuple(pieces)


def _sample(lines: Sequence[_Line], limit: int, rng: random.Random) -> list[_Line]:
    """Whole sessions, drawn until they have ``limit`` requests; they begin as often as those of all ``lines``."""
    sessions: dict[str, list[_Line]] = {}
    for line in lines:
        sessions.setdefault(line.session, []).append(line)
    names = list(sessions)
    rng.shuffle(names)
    kept: list[list[_Line]] = []
    while names and sum(map(len, kept)) < limit:
        kept.append(sessions[names.pop()])
    share, earliest = len(kept) / len(sessions), lines[0].at
    for session in kept:
        earlier = (1 - share) * (session[0].at - earliest)
        for line in session:
            line.at -= earlier
    return sorted((line for session in kept for line in session), key=lambda line: line.at)


def _in_sessions(lines: Sequence[_Line]) -> list[TracedRequest]:
    """The requests: each waits for the one before it in its session and the think time, and never comes before its time."""
    latest: dict[str, int] = {}
    requests = []
    for number, line in enumerate(lines):
        after = latest.get(line.session) if line.session else None
        requests.append(TracedRequest(line.at, line.prompt, line.output_tokens, after=after, pause=line.think))
        latest[line.session] = number
    return requests


def _sharegpt(text: str, path: Path, rng: random.Random) -> list[TracedRequest]:
    """Conversations with Poisson arrivals; each request contains all turns before it."""
    identities = Identities()
    requests: list[TracedRequest] = []
    began = 0.0
    for turns in conversations_in(text, path):
        began += rng.expovariate(SHAREGPT_RATE)
        answers = [UNKNOWN_ANSWER if turn.answer_tokens is None else max(1, turn.answer_tokens) for turn in turns]
        questions = [max(1, len(turn.question.encode()) // BYTES_PER_TOKEN) for turn in turns]
        pauses = [rng.expovariate(1 / SHAREGPT_PAUSE) for _ in turns]
        requests += conversation(
            identities, began, zip(questions, answers, pauses, strict=True), first=len(requests), opening=()
        )
    return sorted_by_time(requests)
