"""`warmroute top`: the live page in a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleRenderable, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from warmroute.errors import ConfigurationError
from warmroute.observability.debug_client import DebugPortError, ask
from warmroute.observability.logs import one_line
from warmroute.routing.decision_record import duration

INTERVAL = 1.0
"""Seconds between two readings."""
LEVELS = {"critical": "bold white on red", "warning": "black on yellow", "ok": "green"}
STATES = {"ready": "green", "unreachable": "bold red", "ejected": "bold red", "sleeping": "dim", "gone": "dim"}
SEVERITY = ("unreachable", "ejected", "ready", "sleeping", "gone")
"""States, the worst first; among engines of one state the longest queue comes first."""
REASONS = {"warm": "yellow", "partial": "yellow", "spread": "cyan", "cold": "dim", "no-prompt": "dim", "state": "dim"}
BLOCKS = "▁▂▃▄▅▆▇█"
BAR_WIDTH = 8
FEW = 12
"""Up to this number engines stay in the order of their names, as on the page."""
MOST_PREFIXES = 8
"""Shared prefixes that are shown."""

COLUMNS: Sequence[tuple[str, int]] = (
    ("engine", 0),
    ("state", 0),
    ("waiting", 0),
    ("running", 0),
    ("queue", 0),
    ("KV cache", 62),
    ("picks", 76),
    ("cached", 92),
    ("restarts", 106),
    ("in flight, 5 min", 132),
)
"""Columns of an engine, each with the width of a terminal from which on it is shown."""

Figures = Mapping[str, Any]


def show(debug_url: str, console: Console, *, once: bool) -> None:
    """Print the state of the fleet once, or once a second until Ctrl-C.

    Raises ConfigurationError if it is not to be printed once and there is no terminal, DebugPortError if the debug port does
    not answer at first.
    """
    if not once and not console.is_terminal:
        raise ConfigurationError("the output is no terminal: give --once")
    live = ask(debug_url, "/debug/live", {})
    if once:
        console.print(screen(live, _history(debug_url), width=console.width))
        return
    history: Figures = {}
    history_due = 0.0
    with Live(console=console, screen=True, auto_refresh=False) as display:
        while True:
            lost = ""
            try:
                live = ask(debug_url, "/debug/live", {})
                if time.monotonic() >= history_due:
                    history = _history(debug_url)
                    history_due = time.monotonic() + history["seconds"]
            except DebugPortError as error:
                lost = str(error)
            display.update(screen(live, history, width=console.width, height=console.height, lost=lost), refresh=True)
            time.sleep(INTERVAL)


def _history(debug_url: str) -> Figures:
    history: Figures = ask(debug_url, "/debug/live/history", {})
    return history


def screen(
    live: Figures, history: Figures, *, width: int, height: int | None = None, lost: str = ""
) -> ConsoleRenderable:
    """The page for a terminal of this size; without a height all engines are shown. ``lost``: why the figures are old."""
    engines = [dict(zip(live["engines"]["columns"], row, strict=True)) for row in live["engines"]["rows"]]
    head = [_head(live["picker"], live["uptime_seconds"])]
    if lost:
        head.append(Text(f"no data: {lost}", style=LEVELS["critical"]))
    head += [Text(notice["text"], style=LEVELS[notice["level"]]) for notice in live["notices"]]
    head += [_summary(live["traffic"], live["states"]), Text()]
    rows: list[ConsoleRenderable] = [*head]
    left = sys.maxsize if height is None else max(3, height - sum(text.cell_len // width + 1 for text in head) - 3)
    shown = len(engines) if len(engines) <= left else max(3, left * 2 // 3)
    rows.append(_engines(_sorted(engines)[:shown], history.get("in_flight", {}), width))
    if shown < len(engines):
        rows.append(Text(f"and {len(engines) - shown} more engines", style="dim"))
    left -= shown + 2
    if live["prefixes"] and left > 6:
        prefixes = live["prefixes"][: min(MOST_PREFIXES, left // 2)]
        rows += [Text(), _prefixes(prefixes, len(engines))]
        left -= len(prefixes) + 2
    if left > 1:
        rows += [Text(), *_decisions(live["decisions"][:left])]
    return Group(*rows)


def _head(picker: Figures, uptime: float) -> Text:
    about = [one_line(picker[name]) for name in ("pool", "strategy") if picker[name]]
    return Text.assemble(("Warmroute", "bold"), f" {' · '.join([*about, picker['version'], f'up {_age(uptime)}'])}")


def _summary(traffic: Figures, states: Figures) -> Text:
    listed = sum(count for state, count in states.items() if state != "gone")
    parts = [
        ("requests per second", f"{traffic['requests_per_second']:.1f}"),
        ("prompt tokens cached", _percent(traffic["hit_ratio"])),
        ("at random", _percent(traffic["random_hit_ratio"])),
        ("prefill tokens saved per second", _number(traffic["saved_tokens_per_second"])),
        ("pick p99", "-" if traffic["pick_p99_seconds"] is None else duration(traffic["pick_p99_seconds"])),
        ("errors", f"{traffic['error_share']:.1%}"),
        ("engines ready", f"{states.get('ready', 0)} of {listed}"),
    ]
    if traffic["held_out_ttft_seconds"] is not None:
        predicted, held_out = traffic["predicted_ttft_seconds"], traffic["held_out_ttft_seconds"]
        parts.append(("predicted TTFT", f"{duration(predicted)}, held out {duration(held_out)}"))
    text = Text()
    for place, (label, value) in enumerate(parts):
        text.append("  " if place else "").append(label, style="dim").append(" ").append(value, style="bold")
    return text


def _sorted(engines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if len(engines) <= FEW:
        return engines
    return sorted(engines, key=lambda engine: (SEVERITY.index(engine["state"]), -engine["queue_seconds"]))


def _engines(engines: Iterable[Figures], in_flight: Mapping[str, Sequence[float]], width: int) -> Table:
    names = [name for name, least in COLUMNS if width >= least]
    table = Table(box=None, pad_edge=False, header_style="dim", expand=False)
    for name in names:
        numeric = name in ("waiting", "running", "queue", "picks", "cached", "restarts")
        table.add_column(name, justify="right" if numeric else "left", no_wrap=True, overflow="ellipsis")
    most = max((max(line, default=0.0) for line in in_flight.values()), default=0.0)
    for engine in engines:
        cells = {
            "engine": Text(one_line(engine["endpoint"].partition("/")[2])),
            "state": Text(engine["state"], style=STATES[engine["state"]]),
            "waiting": Text(f"{engine['waiting']:.0f}/{_number(engine['engine_waiting'])}"),
            "running": Text(f"{engine['running']:.0f}/{_number(engine['engine_running'])}"),
            "queue": Text(duration(engine["queue_seconds"]) if engine["queue_seconds"] else "0"),
            "KV cache": Text(f"{_bar(engine['kv_usage'] or 0.0)} {_percent(engine['kv_usage'])}"),
            "picks": Text(_percent(engine["share_of_picks"])),
            "cached": Text(f"{_percent(engine['expected_hit_ratio'])}/{_percent(engine['measured_hit_ratio'])}"),
            "restarts": Text(str(engine["restarts"])),
            "in flight, 5 min": Text(_sparkline(in_flight.get(engine["endpoint"], ()), most)),
        }
        table.add_row(*[cells[name] for name in names])
    return table


def _prefixes(prefixes: Iterable[Figures], engines: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("shared prefix")
    for name in ("tokens", "requests per second", "engines that hold it"):
        table.add_column(name, justify="right")
    for prefix in prefixes:
        table.add_row(
            prefix["name"],
            _number(prefix["tokens"]),
            f"{prefix['requests_per_second']:.1f}",
            f"{len(prefix['holders'])} of {engines}",
        )
    return table


def _decisions(decisions: Iterable[Figures]) -> Iterable[Text]:
    for decision in decisions:
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append(f"{decision['reason']:<10}", style=REASONS.get(decision["reason"], ""))
        text.append(one_line(decision["chosen"].partition("/")[2]), style="bold")
        yield text.append(f" {one_line(decision['sentence'])}")


def _age(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.0f} h"


def _percent(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.0%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _bar(share: float) -> str:
    filled = round(BAR_WIDTH * min(1.0, share))
    return "█" * filled + "░" * (BAR_WIDTH - filled)


def _sparkline(values: Sequence[float], most: float) -> str:
    """The last values, two in a character, from 0 to ``most``."""
    pairs = [max(values[k : k + 2]) for k in range(0, len(values), 2)]
    return "".join(
        BLOCKS[min(len(BLOCKS) - 1, int(len(BLOCKS) * value / most))] if most else BLOCKS[0] for value in pairs
    )
