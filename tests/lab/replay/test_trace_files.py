"""Trace files: their formats, compression, sessions, and what is said about wrong ones."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from warmroute.errors import ConfigurationError
from warmroute.settings import load
from warmroute_lab.replay.fleet import Fleet, profile
from warmroute_lab.replay.policy_registry import policy_factory
from warmroute_lab.replay.replay import Replay
from warmroute_lab.replay.trace_files import read
from warmroute_lab.simulator.profile import DEFAULT_PROFILE


def turn(at: float, session: str, ids: list[int], *, think: float = 0.0) -> dict[str, Any]:
    return {
        "timestamp": at * 1000,
        "input_length": 512 * len(ids),
        "output_length": 10,
        "hash_ids": ids,
        "session": session,
        "think_ms": think * 1000,
    }


def written(path: Path, entries: list[dict[str, Any]]) -> Path:
    """The entries as JSON lines, compressed as the suffix says."""
    data = "\n".join(map(json.dumps, entries)).encode()
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".xz":
        data = lzma.compress(data)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["trace.jsonl", "trace.jsonl.gz", "trace.jsonl.xz"])
def test_compressed_traces(tmp_path: Path, name: str) -> None:
    trace = read(written(tmp_path / name, [turn(0, "", [1]), turn(4, "", [1, 2])]), seed=1)
    assert (trace.name, [request.prompt_tokens for request in trace.requests]) == ("trace", [512, 1024])


def test_zstandard_needs_its_package_or_reads(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl.zst"
    file.write_bytes(b"no zstandard")
    with pytest.raises(ConfigurationError, match="zst"):
        read(file, seed=1)


def test_a_truncated_archive_is_named(tmp_path: Path) -> None:
    file = tmp_path / "trace.xz"
    file.write_bytes(lzma.compress(b"x" * 1000)[:-20])
    with pytest.raises(ConfigurationError, match=r"cannot read the trace .*trace\.xz"):
        read(file, seed=1)


def test_turns_wait_for_the_answer_and_the_think_time(tmp_path: Path) -> None:
    """The engine takes longer than the recorded one: the second turn comes after its answer and the divided think time."""
    entries = [turn(0, "a", [1]), turn(1, "b", [9]), turn(2, "a", [1, 2], think=8.0)]
    trace = read(written(tmp_path / "trace", entries), seed=1)
    assert [(request.after, request.pause) for request in trace.requests] == [(None, 0.0), (None, 0.0), (0, 8.0)]
    fleet = Fleet((profile(DEFAULT_PROFILE),))
    outcome = Replay(trace, fleet, policy_factory("round-robin", load({}, environ={})), strategy="x", speedup=2.0).run()
    assert outcome.sent_seconds == pytest.approx(outcome.e2e[0] + 8.0 / 2, abs=1e-6)
    opened = read(tmp_path / "trace", seed=1, closed_loop=False)
    assert [(request.at, request.after) for request in opened.requests] == [(0, None), (1, None), (2, None)]


def test_a_sample_has_whole_sessions_that_begin_as_often(tmp_path: Path) -> None:
    entries = [turn(100 * k + step, f"s{k}", [k]) for k in range(20) for step in (0, 1, 2)]
    file = written(tmp_path / "trace", entries)
    trace = read(file, seed=1, limit=15)
    assert len(trace.requests) == 15
    firsts = [request.at for request in trace.requests if request.after is None]
    assert len(firsts) == 5
    assert firsts[-1] - firsts[0] <= 0.25 * 1900
    assert all(
        request.at == trace.requests[request.after].at + 1 for request in trace.requests if request.after is not None
    )
    assert [r.prompt for r in read(file, seed=2, limit=15).requests] != [r.prompt for r in trace.requests]


def test_logs_of_openai_bodies(tmp_path: Path) -> None:
    system = {"role": "system", "content": "You answer in one word. " * 40}
    entries = [
        {"timestamp": 10.0, "body": {"model": "m", "messages": [system, {"role": "user", "content": "a" * 400}]}},
        {"timestamp": "1970-01-01T00:00:12+00:00", "model": "m", "prompt": "b" * 4000, "max_tokens": 7},
        {
            "timestamp": 13,
            "output_tokens": 900,
            "body": {"model": "m", "messages": [system, {"role": "user", "content": "c"}]},
        },
    ]
    first, second, third = read(written(tmp_path / "log.jsonl", entries), seed=1).requests
    assert (first.at, second.at, third.at) == (0, 2, 3)
    assert (first.output_tokens, second.output_tokens, third.output_tokens) == (200, 7, 900)
    assert second.prompt_tokens == pytest.approx(1000, abs=20)
    shared = sum(1 for one, other in zip(first.prompt, third.prompt, strict=False) if one == other)
    assert 0 < shared < len(first.prompt), "they share the system prompt"
    assert first.prompt[0] != second.prompt[0]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("listeners:", r"trace:1 is no JSON.*A trace has one JSON object a line"),
        ("3", "it is no JSON object"),
        ("[1,2]", r"trace:1 is not a request of a trace: it is a list.*A trace has one JSON object a line"),
        ('[1,2]\n{"timestamp": 1}', r"trace:1 is not a request of a trace: it is a list"),
        (
            '[\n{"conversations": [{"value": "x"}]},\n1]',
            r"trace is not a ShareGPT file: entry 2 of its list: .*\"conversations\"",
        ),
        ('[{"conversations": 3}]', r"entry 1 of its list: .*\"conversations\""),
        ('[{"conversations": [3]}]', r"entry 1 of its list: .*\"conversations\""),
        ('[{"conversations": [{"from": "human"}]}]', r"entry 1 of its list: .*\"conversations\""),
        (
            '[{"conversations": [{"value": "x"}, {"from": "gpt", "num_tokens": "y"}]}]',
            r"entry 1 of its list: num_tokens",
        ),
        ('[{"conversations": []},\n3', r"trace:2 is no JSON: .*A ShareGPT file is one JSON list"),
        ('{"model": "m", "prompt": "x"}', "it has no field 'timestamp'"),
        ('{"timestamp": 1, "body": {"model": "m", "messages": []}}', "trace:1 is not a request of a trace"),
        ('{"timestamp": 1, "prompt": "x"}', "trace:1 is not a request of a trace"),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, line: str, what: str) -> None:
    (tmp_path / "trace").write_text(line)
    with pytest.raises(ConfigurationError, match=what):
        read(tmp_path / "trace", seed=1)


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("output_tokens", "x", 'its field output_tokens is not a number: "x"'),
        ("think_ms", "a", 'its field think_ms is not a number: "a"'),
        ("think_ms", None, "its field think_ms is not a number: null"),
        ("timestamp", "yesterday", 'its field timestamp is neither seconds nor a time of ISO 8601: "yesterday"'),
        ("timestamp", [], r"its field timestamp is not a number: \[\]"),
    ],
)
def test_a_field_that_is_no_number_is_named(tmp_path: Path, field: str, value: object, what: str) -> None:
    entry = {"timestamp": 1, "body": {"model": "m", "prompt": "hello " * 300}, field: value}
    (tmp_path / "t.jsonl").write_text(json.dumps(entry))
    with pytest.raises(ConfigurationError, match=rf"t\.jsonl:1 is not a request of a trace: {what}$"):
        read(tmp_path / "t.jsonl", seed=1)


@pytest.mark.parametrize("field", ["timestamp", "input_length", "output_length", "think_ms"])
def test_a_field_of_mooncakes_format_that_is_no_number_is_named(tmp_path: Path, field: str) -> None:
    entry = {"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": [1], field: "a"}
    (tmp_path / "t.jsonl").write_text(json.dumps(entry))
    with pytest.raises(ConfigurationError, match=f'its field {field} is not a number: "a"$'):
        read(tmp_path / "t.jsonl", seed=1)
