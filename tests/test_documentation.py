"""The documents say what the code does."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.core import TyperGroup

from warmroute import cli
from warmroute.discovery.file import EndpointEntry, EndpointsFile, ModelEntry, ModelTargetEntry, parse
from warmroute.settings.table import markdown

ROOT = Path(__file__).parents[1]
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def test_readme_has_every_flag_as_it_is() -> None:
    """To mend it: put the output of ``warmroute settings`` between the two marks."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    match = re.search(r"<!-- settings: .*? -->\n(.*?)<!-- end of settings -->", text, re.DOTALL)
    assert match is not None
    assert match[1].strip() == markdown()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_log_lines_are_written_in_the_module_they_name(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for caller, message in re.findall(r"\tINFO\t(\S+\.py):\d+\t([^\t]+)\t", text):
        assert f'"{message}"' in (ROOT / "src/warmroute" / caller).read_text(encoding="utf-8"), f"{caller} {message}"


def test_the_endpoints_file_is_as_the_picker_reads_it() -> None:
    text = (ROOT / "docs/envoy.md").read_text(encoding="utf-8")
    [example] = [block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "endpoints:" in block]
    assert [spec.port for spec in parse(example).specs()] == [8000, 8000]


def test_the_endpoints_files_every_key_is_documented() -> None:
    text = (ROOT / "docs/envoy.md").read_text(encoding="utf-8")
    for entry in (EndpointsFile, EndpointEntry, ModelEntry, ModelTargetEntry):
        for key in entry.model_fields:
            assert re.search(rf"\b{key}:", text), key


def test_every_document_is_on_the_site() -> None:
    """``make docs`` builds it; this needs no mkdocs."""

    def pages(entries: list[dict[str, object]]) -> list[str]:
        found: list[str] = []
        for entry in entries:
            for target in entry.values():
                found += [target] if isinstance(target, str) else pages(target)  # type: ignore[arg-type]
        return found

    of_root = {"index.md", "changelog.md", "contributing.md", "reporting.md"}
    assert sorted(pages(SITE["nav"])) == sorted(of_root | {path.name for path in (ROOT / "docs").glob("*.md")})


def test_the_architecture_names_every_module() -> None:
    """In a row, a name without a directory is in the directory of the name before it."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    named = set()
    for row in re.findall(r"^\| (`[^|]*\.py`[^|]*) \|", text, re.MULTILINE):
        directory = ""
        for name in re.findall(r"`([^`]*\.py)`", row):
            directory = name.rpartition("/")[0] or directory
            named.add(f"{directory}/{name.rpartition('/')[2]}".lstrip("/"))
    modules = {
        path.relative_to(package).as_posix()
        for package in (ROOT / "src/warmroute", ROOT / "src/warmroute_lab")
        for path in package.rglob("*.py")
        if not path.name.startswith("__") and not path.stem.endswith("_pb2")
    }
    assert named == modules


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_command_lines_name_commands_and_flags_that_exist(document: Path) -> None:
    """Command lines are those in code: ``warmroute COMMAND ...``, also over several lines that end in a backslash."""
    if document.name == "CHANGELOG.md":
        return  # it names commands of former versions
    text = document.read_text(encoding="utf-8").replace("\\\n", " ")
    code = re.findall(r"```.*?\n(.*?)```", text, re.DOTALL) + re.findall(r"`([^`\n]+)`", text)
    for line in (line for block in code for line in block.splitlines()):
        match = re.match(r"(?:\S+=\S+ |\$ |(?:\.venv/bin/|uv run )?)*warmroute ([a-z][^#|]*)", line)
        if match is not None:
            words = match[1].split()
            command, flags = _command(words), {word.partition("=")[0].strip("[]") for word in words}
            known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
            assert {flag for flag in flags if flag.startswith("-")} <= known | {"--help"}, line


@cache
def _commands() -> Any:
    return typer.main.get_command(cli.app)


def _command(words: list[str]) -> Any:
    """The command that the words name."""
    command = _commands()
    context = command.make_context("warmroute", [], resilient_parsing=True)
    for word in words:
        if word.startswith("-") or not isinstance(command, TyperGroup):
            break
        command = command.get_command(context, word)
        assert command is not None, words
    return command
