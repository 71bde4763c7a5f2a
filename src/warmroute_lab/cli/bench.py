"""``warmroute bench``: benchmarks of the routing and of the picker's own cost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from warmroute.errors import ConfigurationError, WarmrouteError
from warmroute.settings import load
from warmroute_lab.cli import ListsPolicies, ListsProfiles, ListsScenarios, command_line

app = command_line(
    help="Benchmarks: what prefix-aware routing gains, and what the picker itself costs.",
    epilog="Example: warmroute bench replay shared-prompts --requests 1500",
    no_args_is_help=True,
)


class _BareShareGPT(TyperCommand):
    """Accepts ``--sharegpt`` without a file, as in commands written for LMCache's multi-round-qa."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        complete: list[str] = []
        for argument, following in zip(args, [*args, "-"][1:], strict=True):
            complete.append(argument)
            if argument == "--sharegpt" and following.startswith("-"):
                complete.append("")
        return super().parse_args(ctx, complete)


@app.command(
    "multi-round",
    cls=_BareShareGPT,
    epilog="Example: warmroute bench multi-round --base-url http://127.0.0.1:8080/v1 "
    "--compare http://127.0.0.1:8081/v1 --time 60 --qps 2",
)
def run_multi_round(
    *,
    base_url: Annotated[
        str, typer.Option(help="Base URL of an OpenAI-compatible server.")
    ] = "http://127.0.0.1:8081/v1",
    compare: Annotated[
        str, typer.Option(help="Second base URL: run the load on both, one after the other, and print the ratio.")
    ] = "",
    num_users: Annotated[int, typer.Option(help="Number of concurrent users.")] = 8,
    num_rounds: Annotated[int, typer.Option(help="Questions of each user.")] = 15,
    qps: Annotated[float, typer.Option(help="Requests per second of all users together.")] = 0.5,
    shared_system_prompt: Annotated[int, typer.Option(help="Words of the system prompt that all users share.")] = 100,
    user_history_prompt: Annotated[int, typer.Option(help="Words of each user's own context.")] = 2000,
    answer_len: Annotated[int, typer.Option(help="Tokens of each answer.")] = 100,
    model: Annotated[str, typer.Option(help="Model of the requests. Default: the first that the server lists.")] = "",
    time: Annotated[
        float | None,
        typer.Option(
            help="Seconds of load; users who have asked all questions are replaced by new ones. "
            "Default: each user asks all questions once."
        ),
    ] = None,
    sharegpt: Annotated[
        str | None,
        typer.Option(metavar="[FILE]", help="Questions from a ShareGPT file; without a file: synthetic text."),
    ] = None,
    salt: Annotated[
        str | None,
        typer.Option(
            help="Text before each user's first question. Default: a random one, so that no cache holds the prompts of "
            "an earlier run. Empty: LMCache's prompts."
        ),
    ] = None,
    init_user_id: Annotated[int, typer.Option(help="Users are numbered from this number plus 1.")] = 0,
    output: Annotated[Path | None, typer.Option(help="CSV file with one line for each request.")] = None,
    log_interval: Annotated[
        float, typer.Option(help="Seconds between progress lines if the output is no terminal.")
    ] = 30,
    api_key: Annotated[str, typer.Option(envvar="OPENAI_API_KEY", help="Bearer token.")] = "",
) -> None:
    """Load of users who ask several questions each, always with the whole conversation so far.

    Options and summary are those of LMCache's multi-round-qa.
    """
    import asyncio
    import secrets

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
        salt=secrets.token_hex(4) if salt is None else salt,
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


@app.command(
    "validate", cls=ListsProfiles, epilog="Example: warmroute bench validate graphs.jsonl --picture graphs.png"
)
def bench_validate(
    files: Annotated[list[Path], typer.Argument(help="Traces measured on a real engine, JSONL.")],
    profile: Annotated[
        str, typer.Option(help="Profile of the simulated engine. Default: by the file's name, eager or graphs.")
    ] = "",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw the distributions to this PNG file.")] = None,
) -> None:
    """Replay traces of a real engine on the simulated one and print both. Exit code 1: an error exceeds its limit."""
    from rich.console import Console

    from warmroute_lab.replay import validate

    if not validate.run(files, Console(), profile=profile, output=json_file, picture=picture):
        raise typer.Exit(1)


@app.command("cost", epilog="Example: warmroute bench cost --quick --json cost.json")
def bench_cost(
    *,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds: less than a minute.")] = False,
    gateway: Annotated[bool, typer.Option(help="Measure through a real Envoy, too.")] = True,
    budgets: Annotated[
        bool, typer.Option("--budgets", help="For developers: compare each figure with the project's budget.")
    ] = False,
    output: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
) -> None:
    """Measure the picker's own cost: CPU, latency and memory, each beside a floor measured in the same run.

    The floor is a server that does the least that is possible on the same transport. Exit code 1: it could not be measured.
    """
    import asyncio
    from dataclasses import replace

    from rich.console import Console

    from warmroute_lab import json_file
    from warmroute_lab.overhead import bench
    from warmroute_lab.overhead.options import QUICK, CostOptions

    json_file.require_place(output)
    options = replace(QUICK if quick else CostOptions(), gateway=gateway)
    try:
        figures = asyncio.run(bench.run(options, Console(), budgets=budgets))
    except (WarmrouteError, OSError) as error:
        typer.echo(f"warmroute: {error}", err=True)
        raise typer.Exit(1) from error
    if output is not None:
        json_file.write(output, bench.plain(figures, budgets=budgets))


@app.command(
    "sharing",
    epilog="Example: warmroute bench sharing --body-bytes 48000 --requests 1000 --warm-up 15000 --json sharing.json",
)
def bench_sharing(
    *,
    body_bytes: Annotated[
        int, typer.Option(min=500, max=200_000, help="Length of each request's body; half of the requests are warm.")
    ] = 2_400,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each set of pickers is measured once per round.")] = 9,
    requests: Annotated[int, typer.Option(min=1, help="Requests for each picker and round.")] = 4_000,
    warm_up: Annotated[
        int, typer.Option(min=1, help="Requests before the first round, until the prefix indexes are full.")
    ] = 60_000,
    output: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
) -> None:
    """Measure the CPU that two pickers need for a request that share their state, beside one that does not.

    Under full load: each picker gets as many requests as it can take. Exit code 1: it could not be measured.
    """
    import asyncio

    from rich.console import Console

    from warmroute_lab import json_file
    from warmroute_lab.overhead import sharing

    json_file.require_place(output)
    options = sharing.SharingOptions(body_bytes=body_bytes, rounds=rounds, requests=requests, warm_up=warm_up)
    try:
        figures = asyncio.run(sharing.run(options, Console()))
    except (WarmrouteError, OSError) as error:
        typer.echo(f"warmroute: {error}", err=True)
        raise typer.Exit(1) from error
    if output is not None:
        json_file.write(output, sharing.plain(figures))


@app.command(
    cls=ListsPolicies, epilog="Example: warmroute bench replay shared-prompts --strategy all --json figures.json"
)
def replay(
    source: Annotated[
        str,
        typer.Argument(
            metavar="TRACE",
            help="A file (JSONL of Mooncake, of Alibaba, or of OpenAI bodies with timestamps; ShareGPT's JSON; .gz, .xz or "
            ".zst too), or a scenario listed below.",
        ),
    ],
    *,
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            help="Routing strategy of the picker, or a baseline listed below; repeatable. all: PREFIX_CACHE and every "
            "baseline. Default: PREFIX_CACHE, LEAST_REQUEST and ROUND_ROBIN."
        ),
    ] = None,
    pods: Annotated[int, typer.Option(min=1, max=1000, help="Number of simulated engines.")] = 8,
    profile: Annotated[
        list[str] | None,
        typer.Option(
            help="Engine: a profile listed below, or NAME/8 for a GPU an eighth as large; repeatable for a mixed fleet."
        ),
    ] = None,
    speedup: Annotated[
        list[float] | None,
        typer.Option(help="Factor on the request rate; repeatable. Default: 0.5, 0.8 and 1.1 times saturation."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.")] = 1,
    requests: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of requests: the first of a trace, about as many in whole sessions of a trace with sessions, or "
            "about as many of a scenario.",
        ),
    ] = None,
    closed_loop: Annotated[
        bool,
        typer.Option(
            "--closed-loop/--open-loop",
            help="Whether each turn of a recorded session waits for the answer before it and the recorded think time, which "
            "the speedup divides.",
        ),
    ] = True,
    restart: Annotated[
        list[str] | None, typer.Option(metavar="POD@T", help="Pod that restarts T seconds into the trace; repeatable.")
    ] = None,
    scale_to: Annotated[
        list[str] | None, typer.Option(metavar="N@T", help="Number of pods from T seconds on; repeatable.")
    ] = None,
    pickers: Annotated[
        int | None, typer.Option(min=1, help="Number of pickers that take the requests in turn and exchange nothing.")
    ] = None,
    shared: Annotated[
        bool,
        typer.Option(
            "--shared",
            help="Replay the picker's strategies three times: one picker, the pickers exchanging what they decide "
            "(--shared-state), and exchanging nothing.",
        ),
    ] = False,
    prefix_caching: Annotated[
        bool, typer.Option("--prefix-caching/--no-prefix-caching", help="Whether the engines keep prompts.")
    ] = True,
    cpu_tier: Annotated[
        float,
        typer.Option(
            help="Second tier of the engines' caches in host memory, as a multiple of the KV cache. Baselines with an "
            "exact index are told its size; the picker is not."
        ),
    ] = 0.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Draw the TTFT distributions and the load of each pod to this PNG file.")
    ] = None,
) -> None:
    """Replay a trace or a scenario through the router and simulated engines, in virtual time.

    Settings of the strategies come from WARMROUTE_<NAME> variables, as for `serve`.
    """
    from rich.console import Console

    from warmroute_lab import plot
    from warmroute_lab.json_file import require_place
    from warmroute_lab.replay import comparison
    from warmroute_lab.replay.fleet import PodEvent
    from warmroute_lab.replay.policy_registry import names

    plan = comparison.Plan(
        source=source,
        strategies=names(strategy or []),
        pods=pods,
        profiles=profile or (),
        speedups=speedup or (),
        seed=seed,
        requests=requests,
        closed_loop=closed_loop,
        restarts=[PodEvent.parse(text, "--restart") for text in restart or ()],
        scalings=[PodEvent.parse(text, "--scale-to") for text in scale_to or ()],
        pickers=pickers,
        shared=shared,
        prefix_caching=prefix_caching,
        cpu_tier=cpu_tier,
    )
    require_place(json_file)
    plot.require(picture)
    outcomes = comparison.compare(plan, load({}, environ=os.environ), Console())
    if json_file is not None:
        comparison.write_json(json_file, outcomes)
    if picture is not None:
        comparison.draw(picture, outcomes)


SOURCES = typer.Argument(
    metavar="[TRACE]...",
    help="Files of traces, and scenarios listed below. Default: all scenarios.",
    show_default=False,
)
LOADS_HELP = "Load as a share of saturation; repeatable. Default: 0.5, 0.8 and 1.1."
WINDOW_HELP = (
    "Requests of each scenario, about, or of each trace. Of a trace without sessions, seed k gets the k-th part of that "
    "size."
)


@app.command(
    cls=ListsScenarios,
    epilog="Example: warmroute bench ablate mooncake.jsonl sessions.jsonl.xz --requests 1500 --seed 1 --seed 2",
)
def ablate(
    sources: Annotated[list[str] | None, SOURCES] = None,
    *,
    number: Annotated[
        list[str] | None,
        typer.Option(
            help="Setting of the cost to change, as cost_waiting; repeatable. Default: all but cost_adapter and cost_stale, "
            "which do not act in replays."
        ),
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Seed of all random numbers; repeatable. Default: 1.")] = None,
    load_share: Annotated[list[float] | None, typer.Option("--load", help=LOADS_HELP)] = None,
    pods: Annotated[
        list[int] | None, typer.Option(min=1, max=1000, help="Number of simulated engines; repeatable. Default: 8.")
    ] = None,
    profile: Annotated[
        list[str] | None, typer.Option(help="Engine, as for `replay`; repeatable for a mixed fleet.")
    ] = None,
    requests: Annotated[int | None, typer.Option(min=1, help=WINDOW_HELP)] = 1500,
    closed_loop: Annotated[bool, typer.Option("--closed-loop/--open-loop", help="As for `replay`.")] = True,
    jobs: Annotated[int | None, typer.Option(min=1, help="Parallel replays. Default: one for each core.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
) -> None:
    """Remove, halve and double each number of the cost, and show what that does to the time to first token.

    Numbers that divide or bound, as prefill_rate, are halved and doubled only. Each row shows how far seeds and sources
    differ, so that noise is seen as noise.
    """
    from rich.console import Console

    from warmroute_lab.replay import ablation
    from warmroute_lab.replay.comparison import LOADS
    from warmroute_lab.replay.scenarios import SCENARIOS
    from warmroute_lab.replay.standings import Options

    for name in number or ():
        if name not in ablation.NUMBERS:
            raise ConfigurationError(f"--number must be one of {', '.join(ablation.NUMBERS)}; given: {name!r}")
    fleets = [
        Options(
            strategies=(ablation.STRATEGY,),
            sources=sources or tuple(SCENARIOS),
            seeds=list(dict.fromkeys(seed or (1,))),
            loads=load_share or LOADS,
            pods=size,
            profiles=profile or (),
            requests=requests,
            closed_loop=closed_loop,
            jobs=jobs or os.cpu_count() or 1,
        )
        for size in dict.fromkeys(pods or (8,))
    ]
    ablation.run(fleets, number or (), load({}, environ=os.environ), Console(), output=json_file)


@app.command(
    cls=ListsPolicies,
    epilog="Example: warmroute bench standings --strategy PREFIX_CACHE --against baselines.json",
)
def standings(
    sources: Annotated[list[str] | None, SOURCES] = None,
    *,
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            help="Routing strategy of the picker, or a baseline listed below; repeatable. The first is shown in detail. "
            "all: PREFIX_CACHE and every baseline."
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="JSON", help="Take the other strategies from this file, written by an earlier --json."),
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Seed of all random numbers; repeatable. Default: 1.")] = None,
    pods: Annotated[int, typer.Option(min=1, max=1000, help="Number of simulated engines.")] = 8,
    load_share: Annotated[list[float] | None, typer.Option("--load", help=LOADS_HELP)] = None,
    profile: Annotated[
        list[str] | None, typer.Option(help="Engine, as for `replay`; repeatable for a mixed fleet.")
    ] = None,
    requests: Annotated[int | None, typer.Option(min=1, help=WINDOW_HELP)] = None,
    closed_loop: Annotated[bool, typer.Option("--closed-loop/--open-loop", help="As for `replay`.")] = True,
    jobs: Annotated[int | None, typer.Option(min=1, help="Parallel replays. Default: one for each core.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
) -> None:
    """Replay scenarios and traces at three loads and compare each strategy with the best of the others.

    With all strategies, a seed takes about ten minutes on two cores; with PREFIX_CACHE alone, half a minute. Write the
    baselines' figures once with --json and pass them with --against afterwards.
    """
    from rich.console import Console

    from warmroute_lab.replay import standings as every
    from warmroute_lab.replay.comparison import LOADS
    from warmroute_lab.replay.policy_registry import names
    from warmroute_lab.replay.scenarios import SCENARIOS

    options = every.Options(
        strategies=names(strategy or []),
        sources=sources or tuple(SCENARIOS),
        seeds=list(dict.fromkeys(seed or (1,))),
        loads=load_share or LOADS,
        pods=pods,
        profiles=profile or (),
        requests=requests,
        closed_loop=closed_loop,
        jobs=jobs or os.cpu_count() or 1,
    )
    every.run(options, load({}, environ=os.environ), Console(), against=against, output=json_file)
