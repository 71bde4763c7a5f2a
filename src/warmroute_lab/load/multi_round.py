"""``warmroute bench multi-round``: a load of users who ask several questions each, with the whole conversation so far.

Load, options and summary are those of LMCache's multi-round-qa benchmark
(https://github.com/LMCache/LMCache/tree/dev/benchmarks/multi_round_qa): there are ``num_users`` concurrent users; each asks
every ``num_users / qps`` seconds and is replaced by a new user after ``num_rounds`` rounds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import MofNCompleteColumn, TextColumn, TimeElapsedColumn

from warmroute.errors import ConfigurationError
from warmroute_lab import json_file, terminal
from warmroute_lab.load.chat_client import ChatClient
from warmroute_lab.load.csv_file import write_csv
from warmroute_lab.load.summary import Summary, table
from warmroute_lab.load.users import Run, run
from warmroute_lab.load.workload import Workload


async def run_with_progress(
    workload: Workload,
    base_url: str,
    console: Console,
    *,
    title: str,
    api_key: str = "",
    log_interval: float = 30.0,
    result: Run | None = None,
) -> Run:
    """:func:`run` with a progress bar; if the output is no terminal, with a line every ``log_interval`` seconds."""
    total = workload.planned_requests
    last_line = monotonic()
    columns = MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[ttft]}")
    with terminal.progress(console, *columns) as bar:
        task = bar.add_task(title, total=total, ttft="")

        def show(result: Run) -> None:
            nonlocal last_line
            recent = [record.answer.ttft for record in result.records[-20:] if record.answer.ttft is not None]
            ttft = f"TTFT {sum(recent) / len(recent) * 1000:.0f} ms" if recent else ""
            bar.update(task, completed=len(result.records), ttft=ttft)
            if not console.is_terminal and monotonic() - last_line >= log_interval:
                last_line = monotonic()
                about = "" if workload.seconds is None else "about "
                done = f"{title}: {len(result.records)} of {about}{total} requests, recent {ttft}"
                console.print(done, highlight=False, markup=False)

        return await run(workload, base_url, api_key=api_key, on_progress=show, result=result)


async def bench(
    workload: Workload,
    base_url: str,
    console: Console,
    *,
    compare: str = "",
    api_key: str = "",
    output: Path | None = None,
    log_interval: float = 30.0,
) -> bool:
    """Run the load, or with ``compare`` two loads one after the other; print and write the results.

    Without a model in ``workload``, the requests name the first model that the first server lists. Returns whether each
    server answered a request. If it is cancelled, it prints and writes the answers received until then.

    Raises ConfigurationError.
    """
    json_file.require_place(output)
    api_key = api_key.strip()
    if not api_key.isprintable():
        raise ConfigurationError("--api-key (OPENAI_API_KEY) has a line break or another control character")
    for url in [base_url, compare] if compare else [base_url]:
        if not url.startswith(("http://", "https://")):
            raise ConfigurationError(f"a base URL begins with http:// or https://; given: {url!r}")
    if not workload.model:
        async with ChatClient(base_url, api_key=api_key) as client:
            workload = replace(workload, model=await client.first_model())
    runs: list[tuple[str, Run]] = []
    try:
        for each, url in zip(_loads(workload), [base_url, compare] if compare else [base_url], strict=False):
            result = Run(each)
            runs.append((url, result))
            await run_with_progress(
                each, url, console, title=url, api_key=api_key, log_interval=log_interval, result=result
            )
            if compare:
                console.print(f"{url}:", highlight=False, soft_wrap=True)
            console.print(Summary.of(result).performance_block(), highlight=False, markup=False, soft_wrap=True)
            if failures := [record.answer.error for record in result.records if not record.answer.complete]:
                console.print(f"{len(failures)} requests failed; the first: {failures[0]}", style="red", markup=False)
    except asyncio.CancelledError:
        console.print("Interrupted. Answers received until then:")
        raise
    finally:
        names = labels([url for url, _ in runs])
        columns = [(name, Summary.of(result)) for name, (_, result) in zip(names, runs, strict=True)]
        if columns:
            terminal.show(table("Multi-round", columns), console)
        if output is not None:
            write_csv(output, runs)
            console.print(f"One line per request: {output}", highlight=False, soft_wrap=True)
    console.print(_on_caches(workload, compared=bool(compare)), highlight=False, markup=False)
    return all(summary.requests for _, summary in columns)


def labels(urls: Sequence[str]) -> list[str]:
    """What the table calls the servers: ``host:port``, or their whole URLs where that does not tell them apart."""
    short = [urlsplit(url).netloc.rpartition("@")[2] for url in urls]
    return short if len(set(short)) == len(urls) else list(urls)


def _loads(workload: Workload) -> Iterator[Workload]:
    """The loads of the first and the second server: they share no user and, with a salt, no prefix.

    Both servers may be in front of the same engines, so a shared prefix would be cached for the second load.
    """
    last = max((visit.user_id for visit in workload.visits()), default=0)
    yield replace(workload, salt=workload.salt and f"{workload.salt}-1")
    yield replace(workload, salt=workload.salt and f"{workload.salt}-2", init_user_id=last)


def _on_caches(workload: Workload, *, compared: bool) -> str:
    """What the caches could hold before the load."""
    if not workload.salt:
        second = " The second load had other users than the first, but its system prompt." if compared else ""
        return "Without a salt: caches may hold the prompts of earlier runs." + second
    each = "Each load's" if compared else "The load's"
    return f"{each} prompts begin with a salt, so no cache held them before, unless --salt {workload.salt} was used before."
