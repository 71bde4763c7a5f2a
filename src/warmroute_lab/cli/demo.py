"""``warmroute demo``: Envoy, simulated engines and the picker on one machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from warmroute_lab.cli import ListsProfiles, command_line
from warmroute_lab.simulator.profile import DEFAULT_PROFILE

app = command_line()


@app.command(cls=ListsProfiles, epilog="Example: warmroute demo --once --json figures.json")
def demo(
    context: typer.Context,
    *,
    once: Annotated[bool, typer.Option("--once", help="Exit after the figures.")] = False,
    load: Annotated[
        bool, typer.Option("--load/--no-load", help="Compare the two ports under load, or leave the engines idle.")
    ] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    host: Annotated[
        str, typer.Option(help="Address of Envoy's two ports. 127.0.0.1: this machine only. 0.0.0.0: every network.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Envoy, through the picker. Ports: 0 takes any free one.")
    ] = 8081,
    plain_port: Annotated[int, typer.Option(min=0, max=65535, help="Envoy, plain least requests.")] = 8080,
    admin_port: Annotated[int, typer.Option(min=0, max=65535, help="Envoy's admin page.")] = 9901,
    epp_port: Annotated[int, typer.Option(min=0, max=65535, help="The picker's ext_proc service.")] = 9002,
    epp_health_port: Annotated[int, typer.Option(min=0, max=65535, help="The picker's health service.")] = 9003,
    metrics_port: Annotated[int, typer.Option(min=0, max=65535, help="The picker's metrics.")] = 9090,
    debug_port: Annotated[int, typer.Option(min=0, max=65535, help="The picker's debug pages.")] = 9091,
    pods: Annotated[int, typer.Option(min=1, max=100, help="Number of simulated engines.")] = 5,
    pod_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the first engine; the others follow.")
    ] = 8000,
    profile: Annotated[str, typer.Option(help="Engine, model and GPU: a profile listed below.")] = DEFAULT_PROFILE,
    time_scale: Annotated[float, typer.Option(help="Speed relative to real engines; 2.0: twice as fast.")] = 1.0,
) -> None:
    """Run a real Envoy, simulated engines and the picker on this machine, and show prefix-aware routing.

    A port that you do not name is replaced by a free one where it is in use.
    """
    import asyncio

    from rich.console import Console

    from warmroute.standalone.child import ChildError
    from warmroute.standalone.up_options import listening_address
    from warmroute_lab.demo import demo as running
    from warmroute_lab.demo.options import ALL_PORT_FLAGS, DemoOptions

    options = DemoOptions(
        host=listening_address(host, "--host"),
        port=port,
        plain_port=plain_port,
        admin_port=admin_port,
        epp_port=epp_port,
        epp_health_port=epp_health_port,
        metrics_port=metrics_port,
        debug_port=debug_port,
        pods=pods,
        pod_port=pod_port,
        profile=profile,
        time_scale=time_scale,
        movable=frozenset(name for name in ALL_PORT_FLAGS if _is_default(context, name)),
    )
    try:
        status = asyncio.run(running.run(options, Console(), once=once, load=load, json_file=json_file))
    except ChildError as error:
        typer.echo(f"warmroute: {error}", err=True)
        raise typer.Exit(1) from error
    raise typer.Exit(status)


def _is_default(context: typer.Context, name: str) -> bool:
    """Whether the user did not give the option."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "DEFAULT"
