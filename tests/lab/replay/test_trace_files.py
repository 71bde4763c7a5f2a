"""Trace files: their formats, compression, sessions, and what is said about wrong ones."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def openai_line(at: float, **fields: Any) -> dict[str, Any]:
    return {"timestamp": at, "body": {"model": "m", "prompt": "hello " * 300}} | fields


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


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("damage", ["cut off", "overwritten", "not compressed"])
def test_a_damaged_archive_is_named(tmp_path: Path, suffix: str, damage: str) -> None:
    """A part of a trace must not pass for all of it."""
    plain = b"".join(json.dumps(turn(at, "", [at])).encode() + b"\n" for at in range(2000))
    if suffix == ".zst":
        data = pytest.importorskip("zstandard").compress(plain)
    else:
        data = gzip.compress(plain) if suffix == ".gz" else lzma.compress(plain)
    if damage == "cut off":
        data = data[: len(data) - 20]
    elif damage == "overwritten":
        data = data[:10] + b"x" * 40 + data[50:]
    else:
        data = plain
    (tmp_path / f"trace.jsonl{suffix}").write_bytes(data)
    with pytest.raises(ConfigurationError, match=r"cannot read the trace .*trace\.jsonl"):
        read(tmp_path / f"trace.jsonl{suffix}", seed=1)


def test_a_zstandard_file_may_have_several_frames(tmp_path: Path) -> None:
    compress = pytest.importorskip("zstandard").compress
    plain = b"".join(json.dumps(turn(at, "", [at])).encode() + b"\n" for at in range(2000))
    (tmp_path / "trace.zst").write_bytes(compress(plain[:70_001]) + compress(b"") + compress(plain[70_001:]))
    assert len(read(tmp_path / "trace.zst", seed=1).requests) == 2000


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    lines = "\r\n".join(json.dumps(turn(at, "", [at])) for at in range(3))
    (tmp_path / "trace").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    assert len(read(tmp_path / "trace", seed=1).requests) == 3
    (tmp_path / "chats").write_bytes(b'\xef\xbb\xbf[{"conversations": [{"value": "x"}]}]')
    assert len(read(tmp_path / "chats", seed=1).requests) == 1


def test_requests_without_a_session_wait_for_nothing(tmp_path: Path) -> None:
    """A log has null where it knows no session: that is not a session with the name None."""
    entries = [openai_line(at, session=None, think_ms=None, output_tokens=None) for at in range(3)]
    entries += [openai_line(at, session=name) for at, name in ((3, "a"), (4, "a"), (5, 0), (6, 0), (7, ""))]
    trace = read(written(tmp_path / "log.jsonl", entries), seed=1)
    assert [request.after for request in trace.requests] == [None, None, None, None, 3, None, 5, None]
    assert [request.output_tokens for request in trace.requests] == [200] * 8


def test_an_answer_of_no_tokens_is_not_an_unknown_one(tmp_path: Path) -> None:
    entries = [openai_line(at, output_tokens=tokens) for at, tokens in enumerate((0, -3, 2.9, None))]
    trace = read(written(tmp_path / "log.jsonl", entries), seed=1)
    assert [request.output_tokens for request in trace.requests] == [1, 1, 2, 200]
    chat = [{"value": "q"}, {"from": "gpt", "num_tokens": 0}, {"value": "q"}, {"from": "gpt", "num_tokens": -5}]
    (tmp_path / "chats").write_text(json.dumps([{"conversations": [*chat, {"value": "q"}, {"from": "gpt"}]}]))
    assert [request.output_tokens for request in read(tmp_path / "chats", seed=1).requests] == [1, 1, 200]


def test_a_negative_think_time_is_none(tmp_path: Path) -> None:
    """Logs have it where a request was sent before the answer to the one before it: time does not run back."""
    trace = read(written(tmp_path / "trace", [turn(0, "a", [1]), turn(1, "a", [1, 2], think=-50.0)]), seed=1)
    assert [request.pause for request in trace.requests] == [0.0, 0.0]


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
        ('{"timestamp": 1, "body": null}', "trace:1 is not a request of a trace: its body is no JSON object"),
        ('{"timestamp": 1, "body": [1]}', "trace:1 is not a request of a trace: its body is no JSON object"),
        ('{"timestamp": 1, "path": 5, "model": "m", "prompt": "x"}', "trace:1 .*: its field path is no text: 5"),
        ('{"timestamp": 1,', r"trace:1 is no JSON: .*line 1 column 17"),
        ("[" * 100_000 + "]" * 100_000, "trace is not a ShareGPT file: .*recursion"),
        ('{"timestamp": 1, "body": ' + "[" * 100_000, "trace:1 is not a request of a trace: it is nested too deeply"),
        ('[{"conversations": [{"value": "x"}, {"from": "gpt", "num_tokens": 1e12}]}]', "num_tokens is too large"),
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
        ("timestamp", None, "its field timestamp is not a number: null"),
        ("timestamp", True, "its field timestamp is not a number: true"),
        ("output_tokens", 1e300, r"its field output_tokens is too large: 1e\+300"),
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


@pytest.mark.parametrize(
    ("ids", "what"),
    [
        ([1], r"must be a list of an id for each 512 tokens of input_length, 2 here, not 1$"),
        ([1, 2, 3, 4], r"must be a list of an id for each 512 tokens of input_length, 2 here, not 4$"),
        (None, r"must be a list of an id for each 512 tokens of input_length, 2 here$"),
        ({"0": 1, "1": 2}, r"must be a list of an id for each 512 tokens of input_length, 2 here$"),
        ([1, "a"], 'has an id that is no integer of 64 bits: "a"$'),
        ([1, 1.5], r"has an id that is no integer of 64 bits: 1\.5$"),
        ([1, 1e999], "has an id that is no integer of 64 bits: Infinity$"),
        ([1, 1 << 64], "has an id that is no integer of 64 bits: 18446744073709551616$"),
    ],
)
def test_wrong_ids_of_mooncakes_format_are_named(tmp_path: Path, ids: object, what: str) -> None:
    entry = {"timestamp": 0, "input_length": 1000, "output_length": 1, "hash_ids": ids}
    (tmp_path / "t.jsonl").write_text(json.dumps(entry))
    with pytest.raises(ConfigurationError, match=rf"t\.jsonl:1 is not a request of a trace: its field hash_ids {what}"):
        read(tmp_path / "t.jsonl", seed=1)


def test_ids_of_the_answer_are_not_the_prompts(tmp_path: Path) -> None:
    """Some writers of Mooncake's format name the blocks of the answer, too."""
    entry = {"timestamp": 0, "input_length": 500, "output_length": 600, "hash_ids": [1, 2, 3]}
    assert read(written(tmp_path / "t.jsonl", [entry]), seed=1).requests[0].prompt == ((1, 500),)


# ---------------------------------------------------------------- Alibaba's format


def chat(number: int, at: float, ids: list[int], *, parent: int = -1) -> dict[str, Any]:
    return {
        "chat_id": number,
        "parent_chat_id": parent,
        "timestamp": at,
        "input_length": 16 * len(ids) - 5,
        "output_length": 10,
        "type": "text",
        "turn": 1,
        "hash_ids": ids,
    }


def test_alibabas_format(tmp_path: Path) -> None:
    """Times are in seconds; a chat and those that follow from it are a session, whose turns wait for answers."""
    entries = [
        chat(1, 10, [1, 2, 3]),
        chat(2, 11.5, [7]),
        chat(3, 12, [1, 2, 3, 4], parent=1),
        chat(4, 13, [1, 2, 3, 4, 5], parent=3),
        chat(9, 14, [8], parent=8),  # its parent was before the trace
    ]
    requests = read(written(tmp_path / "t.jsonl", entries), seed=1).requests
    assert [request.at for request in requests] == [0, 1.5, 2, 3, 4]
    assert [request.prompt_tokens for request in requests] == [43, 11, 59, 75, 11]
    assert [request.after for request in requests] == [None, None, 0, 2, None]
    assert [request.pause for request in requests] == [0] * 5


def test_a_body_with_a_chat_id_is_one_of_openais_api(tmp_path: Path) -> None:
    """Open WebUI adds one."""
    line = {"timestamp": 1, "chat_id": "a", "model": "m", "prompt": "hello " * 300}
    assert read(written(tmp_path / "t.jsonl", [line]), seed=1).requests[0].prompt_tokens == 450


@given(st.lists(st.integers(0, 3), min_size=1, max_size=300), st.data())
def test_prompts_of_alibabas_format_share_almost_the_blocks_that_the_file_says(
    ids: list[int], data: st.DataObject
) -> None:
    """As with the product's own checkpoints: up to 32 tokens less, or a sixteenth of what they share."""
    shared = data.draw(st.integers(0, len(ids)))
    other = [*ids[:shared], 9, 9, 9]
    with TemporaryDirectory() as directory:
        entries = [chat(1, 0, ids), chat(2, 1, other)]
        first, second = read(written(Path(directory) / "t.jsonl", entries), seed=1).requests
    equal = sum(map(int.__eq__, first.blocks(16), second.blocks(16)))
    assert shared - max(2, shared // 16) <= equal <= shared


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            {"hash_ids": [1]},
            "its field hash_ids must be a list of an id for each 16 tokens of input_length, 2 here, not 1",
        ),
        ({"parent_chat_id": None}, "its field parent_chat_id is not a number: null"),
        ({"input_length": 0}, "input_length must be at least 1"),
    ],
)
def test_wrong_lines_of_alibabas_format_are_named(tmp_path: Path, change: dict[str, Any], what: str) -> None:
    written(tmp_path / "t.jsonl", [chat(1, 0, [1, 2]) | change])
    with pytest.raises(ConfigurationError, match=rf"t\.jsonl:1 is not a request of a trace: {what}$"):
        read(tmp_path / "t.jsonl", seed=1)


def test_a_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(b"\n" + json.dumps(openai_line(1)).encode() + b'\n{"prompt": "\xe9"}\n')
    with pytest.raises(ConfigurationError, match=r"t\.jsonl:3 is not UTF-8: .*0xe9 in position 12"):
        read(tmp_path / "t.jsonl", seed=1)
