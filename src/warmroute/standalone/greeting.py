"""What `warmroute up` prints once it is ready: where to send requests, where to look, and a command to try."""

from __future__ import annotations

import json
import shlex
import socket
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path

from warmroute import __version__
from warmroute.observability.logs import one_line
from warmroute.settings.sources import variable_of
from warmroute.standalone.engine_list import Engine
from warmroute.standalone.engine_probe import ModelsAnswer
from warmroute.standalone.picker_process import PickerPorts
from warmroute.standalone.ports import reachable
from warmroute.standalone.up_options import DEBUG_PORT, UpOptions

MOST_ENGINES = 20
"""Engines that are listed."""
KEY_FILE = variable_of("model_server_token_file")
ANY_MODEL = "MODEL"
"""In place of a model's name that no engine has said."""


def greeting(
    options: UpOptions,
    pickers: Sequence[PickerPorts],
    engines: Sequence[Engine],
    probes: Sequence[ModelsAnswer],
    program: str,
    *,
    key_file: Path | None = None,
) -> str:
    """The text. ``options`` are settled, and ``probes`` are what the engines answered. ``program`` starts this program
    again. ``key_file`` has the engines' API key."""
    url = f"http://{reachable(options.host)}:{options.port}"
    pages = [f"http://{reachable(options.debug_host)}:{picker.debug}" for picker in pickers]
    metrics = [f"http://127.0.0.1:{picker.metrics}/metrics" for picker in pickers]
    rows = [*_addresses(options, url, pages, metrics), ("engines", _answering(probes))]
    lines = [
        f"Warmroute {__version__} is ready.",
        "",
        *(f"  {name:<12}{text}" for name, text in rows),
        *_listed(engines, probes, key_file),
        "",
        "Try it:",
        f"  {_curl(url, probes, key_file)}",
        *_commands(program, pages),
        "",
        "Ctrl-C stops it.",
    ]
    return "\n".join(lines)


def _addresses(options: UpOptions, url: str, pages: Sequence[str], metrics: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Where to send requests and where to look, with a name for the first address of each kind."""
    several = len(pages) > 1
    yield "requests", f"{url}/v1  (OpenAI API; {_who(options)})"
    if options.plain_port is not None:
        yield "to compare", f"http://{reachable(options.host)}:{options.plain_port}/v1  (least requests, no picker)"
    if several:
        yield "live pages", f"{pages[0]}/  (each shows its own picker's decisions)"
    else:
        yield "live page", f"{pages[0]}/  (the engines, and why each request went where it went)"
    for page in pages[1:]:
        yield "", f"{page}/"
    scope = "Prometheus; each picker counts its own: scrape all" if several else "Prometheus"
    yield "metrics", f"{metrics[0]}  ({scope})"
    for page in metrics[1:]:
        yield "", page


def _listed(engines: Sequence[Engine], probes: Sequence[ModelsAnswer], key_file: Path | None) -> Iterator[str]:
    """A line for each engine, up to :data:`MOST_ENGINES`."""
    for engine, probe in list(zip(engines, probes, strict=True))[:MOST_ENGINES]:
        yield f"    {engine.name:<24}  {_state(probe, key_file)}"
    if len(engines) > MOST_ENGINES:
        yield f"    and {len(engines) - MOST_ENGINES} more"


def _commands(program: str, pages: Sequence[str]) -> Iterator[str]:
    """Commands that read the pickers' debug ports."""
    first = "" if pages[0] == f"http://127.0.0.1:{DEBUG_PORT}" else f" --debug-url {pages[0]}"
    every, what = first, "the live page in a terminal"
    if len(pages) > 1:
        every = "".join(f" --debug-url {page}" for page in pages)
        what = "the first picker's page in a terminal; --debug-url names another one"
    yield f"  {program} explain X-REQUEST-ID{every}   (the response's header x-request-id: why it went where it went)"
    yield f"  {program} top{first}   ({what})"


def _who(options: UpOptions) -> str:
    address = ip_address(options.host)
    if address.is_loopback:
        return "from this machine only; --host 0.0.0.0 lets others in"
    where = f"http://{socket.gethostname()}:{options.port}/v1 from others; " if address.is_unspecified else ""
    return f"{where}anybody who reaches it can use the engines"


def _answering(probes: Sequence[ModelsAnswer]) -> str:
    answering = sum(not probe.problem for probe in probes)
    if not probes:
        return "none yet; those that begin to answer are used"
    return f"{answering} of {len(probes)} answer"


def _state(probe: ModelsAnswer, key_file: Path | None) -> str:
    if probe.is_locked:
        why = f"refuses the API key in {key_file}" if key_file else f"wants an API key ({KEY_FILE}=FILE)"
        return f"answers, but {why}: its models are not known"
    if probe.problem:
        return f"does not serve ({probe.problem}); gets requests once it does"
    return one_line(probe.model) or "answers"


def _curl(url: str, probes: Sequence[ModelsAnswer], key_file: Path | None) -> str:
    key = ""
    if key_file:  # the shell reads it: a terminal's log does not get the key
        key = f' -H "Authorization: Bearer $(cat {shlex.quote(str(key_file))})"'
    elif any(probe.is_locked for probe in probes):
        key = " -H 'Authorization: Bearer API_KEY'"
    model = next((probe.model for probe in probes if probe.model), ANY_MODEL)
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 16}
    return (
        f"curl -i {url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d {shlex.quote(json.dumps(body))}"
    )
