"""``warmroute bench multi-round``: users who talk to a model in rounds, each sending the whole conversation so far.

The load is that of LMCache's multi-round-qa benchmark, whose options and summary this one shares: at any time ``num_users``
users are there, each asks every ``num_users / qps`` seconds, leaves after ``num_rounds`` rounds, and another joins.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from warmroute.errors import ConfigurationError
from warmroute_lab import json_file
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
    """:func:`run` with a bar on a terminal, elsewhere with a line every ``log_interval`` seconds."""
    total = workload.planned_requests
    last_line = monotonic()
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[ttft]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
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
    """The command: one run, or two in turn with ``compare``, and what is printed and written of them.

    Without a model in ``workload``, the first one that the first server names is asked for. Returns whether any request was
    answered by each server. Where it is cancelled, it still shows and writes what was answered until then.
    """
    json_file.require_place(output)
    for url in filter(None, (base_url, compare)):
        if not url.startswith(("http://", "https://")):
            raise ConfigurationError(f"a base URL begins with http:// or https://; given: {url}")
    if not workload.model:
        async with ChatClient(base_url, api_key=api_key) as client:
            workload = replace(workload, model=await client.first_model())
    runs: list[tuple[str, Run]] = []
    try:
        for url in [base_url, compare] if compare else [base_url]:
            result = Run(workload)
            runs.append((url, result))
            await run_with_progress(
                workload, url, console, title=url, api_key=api_key, log_interval=log_interval, result=result
            )
            if compare:
                console.print(f"{url}:", highlight=False)
            console.print(Summary.of(result).performance_block(), highlight=False, markup=False, soft_wrap=True)
            if failures := [record.answer.error for record in result.records if not record.answer.complete]:
                console.print(f"{len(failures)} requests failed; the first: {failures[0]}", style="red", markup=False)
            # The next server may stand before the same engines: other users find nothing of theirs in the caches.
            last = max((visit.user_id for visit in workload.visits()), default=0)
            workload = replace(workload, init_user_id=last)
    except asyncio.CancelledError:
        console.print("Interrupted; what was answered until then:")
        raise
    finally:
        columns = [(url, Summary.of(result)) for url, result in runs]
        if columns:
            console.print(table("Multi-round", columns))
        if output is not None:
            write_csv(output, runs)
            console.print(f"One line a request: {output}", highlight=False)
    if compare:
        console.print(
            "Each run had users of its own; only the shared system prompt can have been in the caches before the second."
        )
    return all(summary.requests for _, summary in columns)
