"""``warmroute bench validate``: replay traces of a real engine on the simulated one and compare both.

A trace is a JSONL file with one request per line: ``t`` arrival in seconds, ``segs`` the prompt as segments
``[id, tokens]``, ``n`` prompt tokens, ``out`` output tokens, ``cached`` prompt tokens found in the cache, ``ttft`` and
``e2e`` in seconds from sending. Each request is sent at its time, whether earlier ones are answered or not (open loop).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from warmroute.errors import ConfigurationError
from warmroute_lab import json_file, plot, terminal
from warmroute_lab.load.distribution import Distribution
from warmroute_lab.simulator.blocks import Segment, hash_segments
from warmroute_lab.simulator.engine import Engine
from warmroute_lab.simulator.profile import PROFILES, Profile, profile_named
from warmroute_lab.simulator.request import Request

NOISE_RUNS = 8
"""Runs of a profile with host noise, each with another seed; their requests are analysed together."""
REAL = plot.Line(plot.SKY, width=4.0)
SIMULATED = plot.Line(plot.BLACK, width=1.2, above=3)
"""A thin dark line over a wide light one, so that both are visible where they agree."""
_JUDGED = {"ttft": "TTFT", "e2e": "end-to-end"}


@dataclass(frozen=True, slots=True)
class MeasuredRequest:
    """One request as the real engine served it. Times in seconds, lengths in tokens."""

    at: float
    segments: tuple[Segment, ...]
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    ttft: float
    e2e: float


@dataclass(frozen=True, slots=True)
class Sample:
    """The results of all requests of a trace: seconds, and tokens found in the cache."""

    ttft: Sequence[float]
    e2e: Sequence[float]
    cached_tokens: float
    """Sum over all requests; with several runs, the mean of their sums."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """One figure of the real engine and of the simulated one."""

    what: str
    real: float
    simulated: float
    limit: float
    """Largest accepted relative error."""

    @property
    def error(self) -> float:
        """Relative error of the simulated figure."""
        if self.real == self.simulated:
            return 0.0
        return self.simulated / self.real - 1 if self.real else inf

    @property
    def within(self) -> bool:
        """Whether the error is within the limit."""
        return abs(self.error) <= self.limit


@dataclass(frozen=True, slots=True)
class Validation:
    """A replayed trace."""

    file: Path
    profile: Profile
    real: Sample
    simulated: Sample

    @property
    def agreements(self) -> list[Agreement]:
        """All compared figures."""
        real, simulated = Distribution.of(self.real.ttft), Distribution.of(self.simulated.ttft)
        return [
            Agreement("TTFT mean", real.mean, simulated.mean, 0.10),
            Agreement("TTFT p50", real.p50, simulated.p50, 0.10),
            Agreement("TTFT p90", real.p90, simulated.p90, 0.15),
            Agreement("TTFT p99", real.p99, simulated.p99, 0.15),
            Agreement(
                "end-to-end mean", Distribution.of(self.real.e2e).mean, Distribution.of(self.simulated.e2e).mean, 0.10
            ),
            Agreement("cached tokens", self.real.cached_tokens, self.simulated.cached_tokens, 0.01),
        ]

    @property
    def within(self) -> bool:
        """Whether all figures are within their limits."""
        return all(each.within for each in self.agreements)


def read_measurement(file: Path) -> list[MeasuredRequest]:
    """The requests of a trace in order of arrival. Raises ConfigurationError that names file and line."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read {file}: {error}") from error
    requests = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            requests.append(_measured_request(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            detail = f"no field {error}" if isinstance(error, KeyError) else str(error)
            raise ConfigurationError(f"{file}:{number} is not a measured request: {detail}") from error
    if not requests:
        raise ConfigurationError(f"{file} holds no requests")
    return sorted(requests, key=lambda request: request.at)


def _measured_request(fields: dict[str, Any]) -> MeasuredRequest:
    request = MeasuredRequest(
        at=float(fields["t"]),
        segments=tuple((int(identity), int(tokens)) for identity, tokens in fields["segs"]),
        prompt_tokens=int(fields["n"]),
        output_tokens=int(fields["out"]),
        cached_tokens=int(fields["cached"]),
        ttft=float(fields["ttft"]),
        e2e=float(fields["e2e"]),
    )
    if request.prompt_tokens < 1 or request.output_tokens < 1:
        raise ValueError("n and out must be at least 1")
    if sum(tokens for _, tokens in request.segments) != request.prompt_tokens:
        raise ValueError("the segments' tokens do not add up to n")
    return request


def profile_for(file: Path) -> Profile:
    """The measured profile whose last word is in the file's name. Raises ConfigurationError if there is none."""
    for profile in PROFILES.values():
        if profile.measured and profile.name.rpartition("-")[2] in file.name:
            return profile
    raise ConfigurationError(f"the name {file.name} contains neither `eager` nor `graphs`: set --profile")


def replay(requests: Sequence[MeasuredRequest], profile: Profile) -> Sample:
    """Send the requests to a simulated engine at their times. Raises ConfigurationError if one exceeds the KV cache."""
    runs = NOISE_RUNS if profile.timing.launch_noise else 1
    hashes = [hash_segments(request.segments, profile.block_size) for request in requests]
    ttft: list[float] = []
    e2e: list[float] = []
    cached = 0
    for seed in range(runs):
        engine = Engine(profile, every_token=False, seed=seed)
        works = [
            Request(str(number), request.prompt_tokens, request.output_tokens, hashes[number])
            for number, request in enumerate(requests)
        ]
        for work, request in zip(works, requests, strict=True):
            try:
                engine.submit(work, request.at)
            except ValueError as error:
                raise ConfigurationError(f"profile {profile.name}: {error}") from error
        while (due := engine.next_event()) < inf:
            engine.advance(due)
        for work in works:
            assert work.first_token_at is not None
            assert work.finished_at is not None
            ttft.append(work.first_token_at - work.arrived_at)
            e2e.append(work.finished_at - work.arrived_at)
            cached += work.cached_tokens
    return Sample(ttft, e2e, cached / runs)


def validate(file: Path, profile: Profile | None = None) -> Validation:
    """Replay one trace; without ``profile``, on the one of its name. Raises ConfigurationError."""
    requests = read_measurement(file)
    real = Sample(
        [request.ttft for request in requests],
        [request.e2e for request in requests],
        sum(request.cached_tokens for request in requests),
    )
    profile = profile or profile_for(file)
    return Validation(file, profile, real, replay(requests, profile))


def table(validation: Validation) -> Table:
    """Real and simulated figures side by side."""
    result = Table(title=f"{validation.file.name}: {len(validation.real.ttft)} requests on {validation.profile.name}")
    result.add_column("")
    for name in ("real", "simulated", "error", "limit"):
        result.add_column(name, justify="right")
    result.add_column("")
    for each in validation.agreements:
        tokens = each.what == "cached tokens"
        real, simulated = (f"{value:,.0f}" if tokens else f"{value:.3f} s" for value in (each.real, each.simulated))
        word = "within" if each.within else "[bold red]outside[/]"
        result.add_row(each.what, real, simulated, f"{each.error:+.1%}", f"{each.limit:.0%}", word)
    return result


def plain(validation: Validation) -> dict[str, Any]:
    """The figures for JSON, in seconds, tokens and fractions."""
    return {
        "file": str(validation.file),
        "profile": validation.profile.name,
        "requests": len(validation.real.ttft),
        "within": validation.within,
        "figures": [
            asdict(each) | {"error": None if each.error == inf else each.error, "within": each.within}
            for each in validation.agreements
        ],
    }


def draw(validations: Sequence[Validation], picture: Path) -> None:
    """Draw the distributions of each trace to a PNG. Raises ConfigurationError if it cannot be written."""
    with plot.style():
        figure, rows = plot.new(len(validations), row_height=1.75, extra_height=0.5)
        for row, validation in zip(rows, validations, strict=True):
            for axes, what in zip(row, ("ttft", "e2e"), strict=True):
                plot.distribution(axes, getattr(validation.real, what), REAL, "real engine")
                plot.distribution(axes, getattr(validation.simulated, what), SIMULATED, "simulated")
                plot.finish_distribution(axes)
                judged = [each for each in validation.agreements if each.what.startswith(_JUDGED[what])]
                errors = [f"{each.what.rpartition(' ')[2]} {each.error:+.1%}" for each in judged]
                axes.text(
                    0.98,
                    0.05,
                    "\n".join(["error:", *errors]),
                    transform=axes.transAxes,
                    ha="right",
                    va="bottom",
                    size=8,
                )
            row[0].set_ylabel("share of requests")
            row[0].set_title(f"{validation.file.stem}: {len(validation.real.ttft)} requests", weight="bold")
        rows[-1][0].set_xlabel("time to first token, s")
        rows[-1][1].set_xlabel("end-to-end time, s")
        plot.legend(figure, rows[0][0].get_lines(), columns=2)
        plot.save(figure, picture)


def run(
    files: Sequence[Path],
    console: Console,
    *,
    profile: str = "",
    output: Path | None = None,
    picture: Path | None = None,
) -> bool:
    """Validate every file and print the tables. True if all errors are within their limits. Raises ConfigurationError."""
    json_file.require_place(output)
    plot.require(picture)
    chosen = profile_named(profile) if profile else None
    validations = [validate(file, chosen) for file in files]
    for validation in validations:
        terminal.show(table(validation), console)
    if output is not None:
        json_file.write(output, [plain(each) for each in validations])
    if picture is not None:
        draw(validations, picture)
    return all(each.within for each in validations)
