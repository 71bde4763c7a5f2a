"""``warmroute simulate``: simulated engines as HTTP servers."""

from __future__ import annotations

from typing import Annotated

import typer

from warmroute.errors import ConfigurationError
from warmroute_lab.cli import ListsProfiles, command_line
from warmroute_lab.simulator.profile import DEFAULT_PROFILE

app = command_line()


@app.command(cls=ListsProfiles, epilog="Example: warmroute simulate --port 8000 --count 5 --model /model/qwen")
def simulate(
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the first engine; 0: any free port.")] = 8000,
    count: Annotated[int, typer.Option(min=1, max=1000, help="Number of engines, on consecutive ports.")] = 1,
    name: Annotated[
        str,
        typer.Option(help="Sent with each response as x-simulator-name; numbered with --count. Empty: simulator-PORT."),
    ] = "",
    model: Annotated[str, typer.Option(help="Name of the served model.")] = "Qwen/Qwen2.5-7B-Instruct",
    profile: Annotated[str, typer.Option(help="Engine, model and GPU: a profile listed below.")] = DEFAULT_PROFILE,
    time_scale: Annotated[float, typer.Option(help="Speed relative to the real engine; 2.0: twice as fast.")] = 1.0,
    max_num_seqs: Annotated[int | None, typer.Option(help="Most requests that run at once.")] = None,
    num_gpu_blocks: Annotated[int | None, typer.Option(help="Size of the KV cache in blocks.")] = None,
    max_loras: Annotated[int | None, typer.Option(help="Most LoRA adapters in one batch.")] = None,
    block_size: Annotated[int | None, typer.Option(help="Tokens in a block of the KV cache.")] = None,
    prefix_caching: Annotated[
        bool, typer.Option("--prefix-caching/--no-prefix-caching", help="Whether prompts are kept.")
    ] = True,
    cpu_tier: Annotated[float, typer.Option(help="Second cache tier, as a multiple of the KV cache.")] = 0.0,
    hybrid: Annotated[
        bool, typer.Option("--hybrid", help="Prefixes are found only where an earlier prompt ended (Mamba layers).")
    ] = False,
    api_servers: Annotated[int, typer.Option(min=1, help="API server processes that share the metrics page.")] = 1,
    data_parallel_size: Annotated[
        int, typer.Option(min=1, max=64, help="Engines behind each port; X-data-parallel-rank chooses one.")
    ] = 1,
    lora_modules: Annotated[list[str] | None, typer.Option(help="LoRA adapter as NAME=PATH; repeatable.")] = None,
    fail_rate: Annotated[float, typer.Option(min=0, max=1, help="Share of requests answered with 500.")] = 0.0,
    stall_rate: Annotated[float, typer.Option(min=0, max=1, help="Share of requests that get no answer.")] = 0.0,
    reset_rate: Annotated[float, typer.Option(min=0, max=1, help="Share of requests whose connection is reset.")] = 0.0,
    slow_start: Annotated[float, typer.Option(min=0, help="Seconds after the start in which requests get 503.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of faults and host noise.")] = 0,
) -> None:
    """Run simulated vLLM engines: HTTP API, scheduler, prefix cache and speed, without a GPU.

    The share options take numbers from 0 to 1. POST /simulator/faults changes them while an engine runs.
    """
    import uvloop

    from warmroute_lab.simulator.faults import Faults
    from warmroute_lab.simulator.options import SimulatorOptions
    from warmroute_lab.simulator.server import SimulatorServer
    from warmroute_lab.simulator.server import simulate as run

    if bare := [module for module in lora_modules or () if "=" not in module]:
        raise ConfigurationError(f"--lora-modules must be NAME=PATH; given: {bare[0]!r}")
    options = [
        SimulatorOptions(
            host=host,
            port=port + number if port else 0,
            name=f"{name}-{number}" if name and count > 1 else name,
            model=model,
            profile=profile,
            time_scale=time_scale,
            max_num_seqs=max_num_seqs,
            num_gpu_blocks=num_gpu_blocks,
            max_loras=max_loras,
            block_size=block_size,
            prefix_caching=prefix_caching,
            cpu_tier=cpu_tier,
            hybrid=hybrid,
            api_servers=api_servers,
            data_parallel_size=data_parallel_size,
            lora_modules=tuple(module.partition("=")[0] for module in lora_modules or ()),
            slow_start=slow_start,
            faults=Faults(fail_rate, stall_rate, reset_rate),
            seed=seed + number,
        )
        for number in range(count)
    ]

    def announce(server: SimulatorServer) -> None:
        typer.echo(f"{server.name} listens on {server.url}")

    uvloop.run(run(options, announce))
