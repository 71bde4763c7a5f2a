"""``warmroute bench``: what routing gains and what it costs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from warmroute.errors import WarmrouteError
from warmroute.settings_sources import load
from warmroute_lab.cli import command_line

app = command_line(help="Measure what routing gains and what it costs.", no_args_is_help=True)


class _BareShareGPT(TyperCommand):
    """Lets ``--sharegpt`` stand without a file, as commands written for LMCache's multi-round-qa have it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        complete: list[str] = []
        for argument, following in zip(args, [*args[1:], "-"], strict=True):
            complete.append(argument)
            if argument == "--sharegpt" and following.startswith("-"):
                complete.append("")
        return super().parse_args(ctx, complete)


@app.command("multi-round", cls=_BareShareGPT)
def run_multi_round(
    *,
    base_url: Annotated[str, typer.Option(help="OpenAI-compatible server.")] = "http://127.0.0.1:8081/v1",
    compare: Annotated[str, typer.Option(help="Second base URL: run both in turn and print the ratio.")] = "",
    num_users: Annotated[int, typer.Option(help="Users at any one time.")] = 8,
    num_rounds: Annotated[int, typer.Option(help="Questions of one user.")] = 15,
    qps: Annotated[float, typer.Option(help="Requests per second of all users together.")] = 0.5,
    shared_system_prompt: Annotated[int, typer.Option(help="Words of the system prompt of all users.")] = 100,
    user_history_prompt: Annotated[int, typer.Option(help="Words of context of each user.")] = 2000,
    answer_len: Annotated[int, typer.Option(help="Tokens of each answer.")] = 100,
    model: Annotated[str, typer.Option(help="Model to ask for; default: the first that the server names.")] = "",
    time: Annotated[
        float | None,
        typer.Option(
            help="Seconds for which requests are sent, users coming and going; none: each user asks all once."
        ),
    ] = None,
    sharegpt: Annotated[
        str | None, typer.Option(metavar="[FILE]", help="Questions from a ShareGPT file; bare: synthetic text.")
    ] = None,
    init_user_id: Annotated[int, typer.Option(help="Number after which users are counted.")] = 0,
    output: Annotated[Path | None, typer.Option(help="CSV file: one line a request.")] = None,
    log_interval: Annotated[
        float, typer.Option(help="Seconds between progress lines where there is no terminal.")
    ] = 30,
    api_key: Annotated[str, typer.Option(envvar="OPENAI_API_KEY", help="Bearer token.")] = "",
) -> None:
    """Users who talk in rounds, each sending the whole conversation so far; the options of LMCache's multi-round-qa."""
    import asyncio

    from rich.console import Console

    from warmroute_lab.load import multi_round
    from warmroute_lab.load.conversations import read_conversations
    from warmroute_lab.load.workload import Workload

    console = Console()
    if sharegpt == "":
        console.print("--sharegpt without a file: the questions are synthetic text.")
    workload = Workload(
        num_users=num_users,
        num_rounds=num_rounds,
        qps=qps,
        shared_system_prompt=shared_system_prompt,
        user_history_prompt=user_history_prompt,
        answer_len=answer_len,
        model=model,
        seconds=time,
        init_user_id=init_user_id,
        conversations=read_conversations(Path(sharegpt)) if sharegpt else (),
    )
    answered = asyncio.run(
        multi_round.bench(
            workload,
            base_url,
            console,
            compare=compare,
            api_key=api_key,
            output=output,
            log_interval=log_interval,
        )
    )
    if not answered:
        raise typer.Exit(1)


@app.command("validate")
def bench_validate(
    files: Annotated[list[Path], typer.Argument(help="Measured traces, JSONL.")],
    profile: Annotated[str, typer.Option(help="Simulated engine; else what the file's name tells.")] = "",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw the distributions into this PNG file.")] = None,
) -> None:
    """Replay what a real engine was measured doing, and print real beside simulated. Exit code 1: outside the limits."""
    from rich.console import Console

    from warmroute_lab.replay import validate

    if not validate.run(files, Console(), profile=profile, output=json_file, picture=picture):
        raise typer.Exit(1)


@app.command("cost")
def bench_cost(
    *,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds: under a minute.")] = False,
    gateway: Annotated[bool, typer.Option(help="Measure through a real Envoy too.")] = True,
    output: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
) -> None:
    """What the picker itself costs, each figure beside its floor. Budgets are judged but not enforced: exit code 0."""
    import asyncio
    from dataclasses import replace

    from rich.console import Console

    from warmroute_lab import json_file
    from warmroute_lab.overhead import overhead
    from warmroute_lab.overhead.options import QUICK, CostOptions

    json_file.require_place(output)
    options = replace(QUICK if quick else CostOptions(), gateway=gateway)
    try:
        figures = asyncio.run(overhead.bench(options, Console()))
    except (WarmrouteError, OSError) as error:
        typer.echo(f"warmroute: {error}", err=True)
        raise typer.Exit(1) from error
    if output is not None:
        json_file.write(output, overhead.plain(figures))


@app.command()
def replay(
    source: Annotated[
        str,
        typer.Argument(metavar="TRACE", help="Mooncake JSONL, ShareGPT JSON, or a scenario; a wrong name lists them."),
    ],
    *,
    strategy: Annotated[
        list[str] | None,
        typer.Option(help="Strategy of the server or baseline; repeatable. all: PREFIX_CACHE and every baseline."),
    ] = None,
    pods: Annotated[int, typer.Option(min=1, max=1000, help="Simulated engines.")] = 8,
    profile: Annotated[
        list[str] | None,
        typer.Option(help="Engine as NAME, or NAME/8 for a GPU an eighth as large; repeatable for a mixed fleet."),
    ] = None,
    speedup: Annotated[
        list[float] | None,
        typer.Option(help="Factor on the request rate; repeatable. Default: half, 0.8 and 1.1 times saturation."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.")] = 1,
    requests: Annotated[
        int | None, typer.Option(min=1, help="The first so many; of a scenario, about so many.")
    ] = None,
    restart: Annotated[
        list[str] | None, typer.Option(metavar="POD@T", help="Pod that restarts T seconds into the trace; repeatable.")
    ] = None,
    scale_to: Annotated[
        list[str] | None, typer.Option(metavar="N@T", help="Number of pods from T seconds on; repeatable.")
    ] = None,
    pickers: Annotated[
        int | None, typer.Option(min=1, help="Pickers that share the requests, unaware of each other.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw TTFT distributions and load per pod to this PNG.")] = None,
) -> None:
    """Replay a trace or a scenario through the router and simulated engines, in virtual time.

    Settings of the server's strategies come from WARMROUTE_<NAME> variables, as for `serve`.
    """
    from rich.console import Console

    from warmroute_lab import plot
    from warmroute_lab.json_file import require_place
    from warmroute_lab.replay import comparison
    from warmroute_lab.replay.fleet import PodEvent
    from warmroute_lab.replay.strategy import names

    plan = comparison.Plan(
        source=source,
        strategies=names(strategy or []),
        pods=pods,
        profiles=profile or (),
        speedups=speedup or (),
        seed=seed,
        requests=requests,
        restarts=[PodEvent.parse(text, "--restart") for text in restart or ()],
        scalings=[PodEvent.parse(text, "--scale-to") for text in scale_to or ()],
        pickers=pickers,
    )
    require_place(json_file)
    plot.require(picture)
    outcomes = comparison.compare(plan, load({}, environ=os.environ), Console())
    if json_file is not None:
        comparison.write_json(json_file, outcomes)
    if picture is not None:
        comparison.draw(picture, outcomes)


@app.command()
def standings(
    *,
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            help="Strategy of the server or baseline; repeatable, and the first is shown in detail. "
            "all: PREFIX_CACHE and every baseline."
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="JSON", help="Take the other strategies from this earlier --json instead of replaying."),
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="Seed of everything that is drawn; repeatable. Default: 1.")
    ] = None,
    pods: Annotated[int, typer.Option(min=1, max=1000, help="Simulated engines.")] = 8,
    requests: Annotated[int | None, typer.Option(min=1, help="Of each scenario, about so many.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Replays at once; default: one for each core.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
) -> None:
    """Replay every scenario at every load, and show how the strategies stand. By this a change of the cost is judged.

    With all strategies a seed takes about ten minutes on two cores, with PREFIX_CACHE alone half a minute: write the
    baselines once with --json, and say --against afterwards.
    """
    from rich.console import Console

    from warmroute_lab.replay import standings as every
    from warmroute_lab.replay.strategy import names

    options = every.Options(
        strategies=names(strategy or []),
        seeds=list(dict.fromkeys(seed or (1,))),
        pods=pods,
        requests=requests,
        jobs=jobs or os.cpu_count() or 1,
    )
    every.run(options, load({}, environ=os.environ), Console(), against=against, output=json_file)
