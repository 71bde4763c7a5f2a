"""Files with YAML: what is read, what is refused, and that no file costs more than its size allows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmroute import yaml_file
from warmroute.errors import ConfigurationError
from warmroute.settings import load
from warmroute.yaml_file import Document

LAUGHS = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
)
"""Ten to the twelfth values in 1 KB."""
MERGES = "\n".join(
    ["a0: &a0 {x0: 1}"] + [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}], x{i}: 1}}" for i in range(1, 12)]
)
"""The merge key in place of lists."""
HOSTILE = {
    "deep lists": ("[" * 100_000, r"line 1, column 33: nested deeper than 32 levels"),
    "deep mappings": ("{a: " * 100_000, "nested deeper than 32 levels"),
    "aliases of aliases": (LAUGHS, "line 6, .*more than 500000 values"),
    "merges of merges": (MERGES, "more than 500000 values"),
    "an alias of itself": ("&a [*a]", "'a' contains itself"),
    "a long number": ("a: " + "9" * 5000, "line 1, column 4: more than 4096 characters"),
    "a number of more digits than Python converts": ("a: " + "9" * 4096, None),
    "a wrong tag": ("a: !!int ''", "line 1, column 4: unusable value"),
    "a tag of Python": ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    "a date that does not exist": ("a: 2026-99-99", "unusable value: month must be in"),
    "a key twice": ("a: 1\nb: {c: 1, c: 2}", "line 2, column 11: repeated key 'c'"),
    "a NUL": ("a: \x00", "not YAML: unacceptable character"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_refused_with_its_line(name: str) -> None:
    text, complaint = HOSTILE[name]
    if complaint is None:
        assert Document(text).content
        return
    with pytest.raises(ConfigurationError, match=complaint) as raised:
        Document(text)
    assert len(str(raised.value)) < 300
    assert "\n" not in str(raised.value)


def test_many_values_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_file, "MOST_NODES", 1_000)
    assert Document("[" + "1," * 999 + "]").content == [1] * 999
    with pytest.raises(ConfigurationError, match="line 1, column 2000: more than 1000 values"):
        Document("[" + "1," * 1_000 + "]")


@given(st.text(max_size=60))
def test_any_text_is_a_document_or_a_configuration_error(text: str) -> None:
    try:
        Document(text)
    except ConfigurationError:
        pass


def test_ordinary_aliases_and_merges_are_followed() -> None:
    content = Document("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]").content
    assert content == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": [{"x": 1}, {"x": 1}]}


def test_json_with_tabs() -> None:
    assert Document('{\n\t"a": [1, "x"]}').content == {"a": [1, "x"]}


def test_what_is_not_a_regular_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ConfigurationError, match=f"cannot read the settings file {path}: not a regular file"):
            yaml_file.read(path, "settings file")


def test_a_file_is_read_up_to_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with path.open("wb") as file:
        file.truncate(yaml_file.LARGEST_FILE)
    assert len(yaml_file.read(path, "file")) == yaml_file.LARGEST_FILE
    with path.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ConfigurationError, match="larger than 8 MiB"):
        yaml_file.read(path, "file")


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "1"), ("a\x1b", r"'a\x1b'"), (1 << 20_000, "a number of more than 4096 digits"), ([[[[1]]]], "[[[...]]]")],
    ids=["number", "escape", "huge number", "nested"],
)
def test_a_quoted_value_is_short_and_printable(value: object, text: str) -> None:
    assert yaml_file.shown(value) == text
    assert len(yaml_file.shown([value, "x" * 1000] * 1000)) < 1000


def test_problems_are_listed_up_to_ten() -> None:
    assert yaml_file.summary(["a", "b"]) == "a; b"
    assert yaml_file.summary(["a"] * 12) == "; ".join("a" * 10) + "; and 2 more"


@pytest.mark.parametrize(
    "value",
    [
        "9" * 5000,
        "0x" + "f" * 4000,
        "-1e999",
        "!!int ''",
        "[]",
        "{a: b}",
        LAUGHS,
        '"\\0"',
        "!!binary aGk=",
        "2026-01-01",
        "1:" * 1000 + "1",
        "~",
        "'²s'",
        "1.2.3s",
        "'\\x1b[31m'",
    ],
)
def test_no_value_of_a_settings_file_gives_a_traceback(tmp_path: Path, value: str) -> None:
    file = tmp_path / "settings.yaml"
    for name in ("grpc_port", "drain_timeout", "cost_waiting", "strict_models", "shedding", "host", "cert_path"):
        file.write_text(f"{name}: {value}" if value != LAUGHS else f"{value}\n{name}: *a4")
        said = complaint(settings_file=file)
        assert said is None or (str(file) in said and said.isprintable() and len(said) < 2000)


@given(st.text(max_size=40), st.sampled_from(("grpc_port", "drain_timeout", "cost_waiting", "endpoints_file", "host")))
def test_no_flag_or_variable_gives_a_traceback(text: str, name: str) -> None:
    for flags, environ in (({name: text}, {}), ({}, {f"WARMROUTE_{name.upper()}": text})):
        said = complaint(flags, environ)
        assert said is None or said.isprintable()


def complaint(
    flags: Mapping[str, str] = {}, environ: Mapping[str, str] = {}, settings_file: Path | None = None
) -> str | None:
    """The error of loading these settings; None: they are usable."""
    try:
        load(flags, environ=environ, settings_file=settings_file)
    except ConfigurationError as error:
        return str(error)
    return None
