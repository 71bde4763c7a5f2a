"""The laboratory's commands: ``warmroute bench``, ``warmroute simulate`` and ``warmroute demo``.

They hook into the command line by the entry-point group ``warmroute.commands``. Each imports what it needs when it runs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from warmroute.errors import ConfigurationError, WarmrouteError
from warmroute.settings import load


def _app(**options: Any) -> typer.Typer:
    return typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        **options,
    )


# ---------------------------------------------------------------- bench: what routing gains and costs


bench = _app(help="Measure what routing gains and what it costs.", no_args_is_help=True)
simulate = _app()
demo = _app()


class _BareShareGPT(TyperCommand):
    """Lets ``--sharegpt`` stand without a file, as commands written for LMCache's multi-round-qa have it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        complete: list[str] = []
        for argument, following in zip(args, [*args[1:], "-"], strict=True):
            complete.append(argument)
            if argument == "--sharegpt" and following.startswith("-"):
                complete.append("")
        return super().parse_args(ctx, complete)


@bench.command("multi-round", cls=_BareShareGPT)
def multi_round(
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

    from warmroute_lab.load import multi_round as load

    console = Console()
    if sharegpt == "":
        console.print("--sharegpt without a file: the questions are synthetic text.")
    workload = load.Workload(
        num_users=num_users,
        num_rounds=num_rounds,
        qps=qps,
        shared_system_prompt=shared_system_prompt,
        user_history_prompt=user_history_prompt,
        answer_len=answer_len,
        model=model,
        seconds=time,
        init_user_id=init_user_id,
        conversations=load.read_conversations(Path(sharegpt)) if sharegpt else (),
    )
    answered = asyncio.run(
        load.bench(
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


@bench.command("validate")
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


@bench.command("cost")
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
    from warmroute_lab.overhead import overhead as cost

    json_file.require_place(output)
    options = replace(cost.QUICK if quick else cost.CostOptions(), gateway=gateway)
    try:
        figures = asyncio.run(cost.bench(options, Console()))
    except (WarmrouteError, OSError) as error:
        typer.echo(f"warmroute: {error}", err=True)
        raise typer.Exit(1) from error
    if output is not None:
        json_file.write(output, cost.plain(figures))


@bench.command()
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


@bench.command()
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


@simulate.command("simulate")
def run_simulate(
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")] = 8000,
    count: Annotated[int, typer.Option(min=1, max=1000, help="How many engines, on consecutive ports.")] = 1,
    name: Annotated[str, typer.Option(help="Sent as x-simulator-name; numbered from 0 with --count.")] = "simulator",
    model: Annotated[str, typer.Option(help="Model name that is served.")] = "Qwen/Qwen2.5-7B-Instruct",
    profile: Annotated[str, typer.Option(help="Engine, model and GPU; a wrong name lists those there are.")] = "",
    time_scale: Annotated[float, typer.Option(help="2.0: twice as fast as the real one.")] = 1.0,
    max_num_seqs: Annotated[int | None, typer.Option(help="Most requests run at once.")] = None,
    num_gpu_blocks: Annotated[int | None, typer.Option(help="Size of the KV cache in blocks.")] = None,
    max_loras: Annotated[int | None, typer.Option(help="Most LoRA adapters in one batch.")] = None,
    lora_modules: Annotated[list[str] | None, typer.Option(help="LoRA adapter as NAME=PATH; repeatable.")] = None,
    fail_rate: Annotated[float, typer.Option(help="Share of requests answered with 500.")] = 0.0,
    stall_rate: Annotated[float, typer.Option(help="Share of requests never answered.")] = 0.0,
    reset_rate: Annotated[float, typer.Option(help="Share of connections reset.")] = 0.0,
    slow_start: Annotated[float, typer.Option(min=0, help="Seconds of 503 after the start.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of faults and host noise.")] = 0,
) -> None:
    """Run a vLLM stand-in: its HTTP surface, scheduling, cache and speed, without a GPU."""
    import uvloop

    from warmroute_lab.simulator.profile import DEFAULT_PROFILE
    from warmroute_lab.simulator.server import Faults, SimulatorOptions, SimulatorServer
    from warmroute_lab.simulator.server import simulate as run

    if bare := [module for module in lora_modules or () if "=" not in module]:
        raise ConfigurationError(f"--lora-modules must be NAME=PATH; given: {bare[0]!r}")
    options = [
        SimulatorOptions(
            host=host,
            port=port + number if port else 0,
            name=f"{name}-{number}" if count > 1 else name,
            model=model,
            profile=profile or DEFAULT_PROFILE,
            time_scale=time_scale,
            max_num_seqs=max_num_seqs,
            num_gpu_blocks=num_gpu_blocks,
            max_loras=max_loras,
            lora_modules=tuple(module.partition("=")[0] for module in lora_modules or ()),
            slow_start=slow_start,
            faults=Faults(fail_rate, stall_rate, reset_rate),
            seed=seed + number,
        )
        for number in range(count)
    ]

    def announce(server: SimulatorServer) -> None:
        typer.echo(f"{server.options.name} listens on {server.url}")

    uvloop.run(run(options, announce))


# ---------------------------------------------------------------- demo: everything on one machine


@demo.command("demo")
def run_demo(
    *,
    once: Annotated[bool, typer.Option("--once", help="End after the figures.")] = False,
    load: Annotated[
        bool, typer.Option("--load/--no-load", help="Compare the ports under load, or leave the engines to you.")
    ] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    config_directory: Annotated[
        Path | None, typer.Option("--write-config", help="Only write Envoy's configurations to this directory.")
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Envoy, through the picker. Ports: 0 takes any free one.")
    ] = 8081,
    plain_port: Annotated[int, typer.Option(min=0, max=65535, help="Envoy, plain least requests.")] = 8080,
    admin_port: Annotated[int, typer.Option(min=0, max=65535, help="Envoy's admin page.")] = 9901,
    epp_port: Annotated[int, typer.Option(min=0, max=65535, help="The picker's ext_proc service.")] = 9002,
    epp_health_port: Annotated[int, typer.Option(min=0, max=65535, help="The picker's health service.")] = 9003,
    metrics_port: Annotated[int, typer.Option(min=0, max=65535, help="The picker's metrics and debug pages.")] = 9090,
    pods: Annotated[int, typer.Option(min=1, max=100, help="Simulated engines.")] = 5,
    pod_port: Annotated[int, typer.Option(min=0, max=65535, help="First engine's port; the others follow.")] = 8000,
    profile: Annotated[str, typer.Option(help="Engine, model and GPU; a wrong name lists those there are.")] = "",
    time_scale: Annotated[float, typer.Option(help="2.0: engines twice as fast as real ones.")] = 1.0,
) -> None:
    """See a prompt land on the warm replica: a real Envoy, simulated engines and the picker on this machine."""
    import asyncio

    from rich.console import Console

    from warmroute.standalone.child import ChildError
    from warmroute_lab.demo import demo as standalone
    from warmroute_lab.simulator.profile import DEFAULT_PROFILE

    options = standalone.DemoOptions(
        port=port,
        plain_port=plain_port,
        admin_port=admin_port,
        epp_port=epp_port,
        epp_health_port=epp_health_port,
        metrics_port=metrics_port,
        pods=pods,
        pod_port=pod_port,
        profile=profile or DEFAULT_PROFILE,
        time_scale=time_scale,
    )
    if config_directory is not None:
        for path in standalone.write_config(options, config_directory):
            typer.echo(path)
        return
    try:
        status = asyncio.run(standalone.run(options, Console(), once=once, load=load, json_file=json_file))
    except ChildError as error:
        typer.echo(f"warmroute: {error}", err=True)
        raise typer.Exit(1) from error
    raise typer.Exit(status)
