"""The command line. Each command imports its modules when it runs, so that ``--help`` is fast."""

from __future__ import annotations

import errno
import os
import shlex
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from warmroute.errors import ConfigurationError, WarmrouteError
from warmroute.settings import Settings, go_flags, load, table
from warmroute.settings.flags import flags_of_settings, with_settings_flags
from warmroute.settings.sources import mistyped_variables, variable_of

COMMANDS_GROUP = "warmroute.commands"
"""Entry-point group of commands from other distributions: each is a :class:`typer.Typer`."""
LAB_COMMANDS = ("bench", "demo", "simulate")
"""Commands of the distribution warmroute-lab."""


class _Commands(TyperGroup):
    """The product's commands, and those that other distributions install under :data:`COMMANDS_GROUP`."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the product's commands in their order, then those installed."""
        own = super().list_commands(ctx)
        return own + sorted(entry.name for entry in entry_points(group=COMMANDS_GROUP) if entry.name not in own)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name; an installed one is imported now. Raises ConfigurationError where it is missing."""
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            return command
        for entry in entry_points(group=COMMANDS_GROUP, name=cmd_name):
            command = typer.main.get_command(entry.load())
            command.name = cmd_name
            return command
        if cmd_name in LAB_COMMANDS:
            raise ConfigurationError(f"`warmroute {cmd_name}` is in another package: pip install warmroute-lab")
        return None


class _InGroups(TyperCommand):
    """A command whose help lists the options under the headings of their groups."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one section per group, in the order of the options."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            record = option.get_help_record(ctx)
            if record is not None:
                sections.setdefault(getattr(option, "rich_help_panel", None) or "Options", []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


class _Up(TyperCommand):
    """`warmroute up`, which says how a setting of the picker is given."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The arguments that are left. Raises ConfigurationError for a flag of `warmroute serve` that `up` does not have."""
        own = {name for option in self.get_params(ctx) for name in (*option.opts, *option.secondary_opts)}
        for k, argument in enumerate(args):
            flag, equals, value = argument.partition("=")
            if flag not in own and flag in flags_of_settings():
                following = args[k + 1] if k + 1 < len(args) else "-"
                raise ConfigurationError(_as_variable(flag, value if equals else following))
        return super().parse_args(ctx, args)


def _as_variable(flag: str, value: str) -> str:
    """How a setting is given to `warmroute up`. ``value`` begins with a hyphen if the flag has none."""
    from warmroute.standalone.picker_process import PickerPorts, own_flags

    if flag in own_flags(Path(), PickerPorts(0, 0, 0)):
        return f"{flag} is set by `warmroute up` itself"
    name = flags_of_settings()[flag]
    if Settings.model_fields[name].annotation is bool and value.lower() not in ("true", "false"):
        value = "true"
    given = "VALUE" if value.startswith("-") else shlex.quote(value)
    return f"{flag} is a setting of the picker: {variable_of(name)}={given} warmroute up ..."


app = typer.Typer(
    name="warmroute",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain text; importing Rich doubles the time of --help
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from warmroute import __version__, runtime

        typer.echo(f"{__version__} (compiled)" if runtime.compiled() else __version__)
        raise typer.Exit


@app.callback(epilog="Example: warmroute serve --endpoints-file endpoints.yaml")
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """An endpoint picker for LLM inference behind Envoy."""


@app.command(epilog="Example: warmroute version")
def version() -> None:
    """Print the version."""
    _print_version(True)


@app.command(
    cls=_InGroups,
    epilog="Example: warmroute serve --endpoints-file endpoints.yaml --strict-models",
)
@with_settings_flags
def serve(settings_file: Path | None = None, **flags: str | None) -> None:
    """Run the endpoint picker.

    Each flag is also an environment variable, WARMROUTE_<NAME>, and a key of the settings file. Durations are seconds, or
    text like 500ms and 1m30s.
    """
    from warmroute import runtime

    runtime.prepare(os.environ)
    from warmroute import picker

    for warning in mistyped_variables(os.environ):
        _warn(warning)
    given = {name: value for name, value in flags.items() if value is not None}
    picker.serve(load(given, environ=os.environ, settings_file=settings_file))


@app.command(cls=_Up, epilog="Example: warmroute up http://10.0.0.7:8000 http://10.0.0.8:8000 --host 0.0.0.0")
def up(
    engines: Annotated[
        list[str] | None, typer.Argument(metavar="[URL]...", help="The engines, as http://HOST:PORT; host names too.")
    ] = None,
    *,
    endpoints_file: Annotated[
        Path | None,
        typer.Option(help="The engines as a YAML file, which may change (docs/envoy.md), in place of URLs."),
    ] = None,
    discover: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:FROM-TO", help="Use every port of this range that answers like an engine; repeatable."
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(help="Address for requests. 127.0.0.1: this machine only. 0.0.0.0: every network; no password."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port for requests. Ports: 0 takes any free one.")] = 8081,
    plain_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="A second port, without the picker (least requests), to compare."),
    ] = None,
    debug_host: Annotated[
        str, typer.Option(help="Address of the debug page, which shows all clients' load.")
    ] = "127.0.0.1",
    debug_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of the debug page. Default: 9091, or any free one.")
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="Port of the Prometheus metrics, on loopback. Default: 9090, or any free one."
        ),
    ] = None,
    routing_strategy: Annotated[
        str | None, typer.Option(help="As of `warmroute serve`. Default: PREFIX_CACHE.")
    ] = None,
    access_log: Annotated[
        str,
        typer.Option(
            metavar="FILE", help="A JSON line for each request, with the picker's reason; /dev/stdout is one."
        ),
    ] = "",
    pickers: Annotated[
        int,
        typer.Option(min=1, max=64, help="Endpoint pickers. Several share what they know through a NATS of their own."),
    ] = 1,
    drain_timeout: Annotated[
        float, typer.Option(min=0, help="Longest wait for requests in flight when it is stopped, in seconds.")
    ] = 30.0,
    write_config: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Only write the configurations of Envoy and one picker, to run them yourself."
        ),
    ] = None,
) -> None:
    """Put Warmroute in front of engines that run already: Envoy and the endpoint picker, until Ctrl-C.

    Needs `pip install 'warmroute[standalone]'`, which has Envoy. Engines that do not answer yet get requests once they do.
    Their type (vLLM, SGLang, TensorRT-LLM) is read from their metrics pages. Other settings of the picker are environment
    variables: WARMROUTE_HOLDOUT=5% (see `warmroute serve --help`).
    """
    from warmroute.standalone import up as running
    from warmroute.standalone.child import ChildError
    from warmroute.standalone.config_files import write
    from warmroute.standalone.engine_list import EngineList, PortRange, Target
    from warmroute.standalone.program import program
    from warmroute.standalone.up_options import UpOptions

    listed = EngineList(
        [Target.parse(engine) for engine in engines or ()],
        [PortRange.parse(ports) for ports in discover or ()],
        endpoints_file,
    )
    options = UpOptions(
        host=host,
        port=port,
        plain_port=plain_port,
        debug_host=debug_host,
        debug_port=debug_port,
        metrics_port=metrics_port,
        access_log=access_log,
        strategy=routing_strategy,
        pickers=pickers,
        drain_timeout=drain_timeout,
    )
    if write_config is not None:
        for path in write(listed, options, write_config):
            typer.echo(path)
        return
    try:
        running.up(listed, options, typer.echo, program())
    except ChildError as error:
        _warn(str(error))
        raise typer.Exit(1) from error


@app.command(epilog="Example: warmroute explain --body request.json")
def explain(
    request_id: Annotated[
        str,
        typer.Argument(
            metavar="[REQUEST_ID]", help="The request's x-request-id, which Envoy also sends to the client."
        ),
    ] = "",
    *,
    body: Annotated[
        Path | None,
        typer.Option(help="Dry run: where would a request with this JSON body (-: stdin) go now? Nothing is sent."),
    ] = None,
    path: Annotated[str, typer.Option(help="Path of the dry run's request.")] = "/v1/chat/completions",
    header: Annotated[
        list[str] | None,
        typer.Option("--header", "-H", metavar="'NAME: VALUE'", help="A header of the dry run's request; repeatable."),
    ] = None,
    debug_url: Annotated[
        list[str] | None,
        typer.Option(help="A picker's debug port; repeatable for several pickers. Default: http://127.0.0.1:9091"),
    ] = None,
    decision_log: Annotated[
        list[Path] | None,
        typer.Option(
            help="Look the request up in this file of --decision-log, not on the debug port; repeatable for several "
            "pickers."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the explanation as JSON.")] = False,
) -> None:
    """Say why a request went where it went, or where one would go: each endpoint's share of the prompt, wait and cost.

    Needs a running picker, except with --decision-log. The picker remembers its last --debug-decisions requests. Cached
    tokens are rounded down to a multiple of 1,024, but not in the decision log. Exit code 1: the request of a dry run would
    be rejected.
    """
    from warmroute import explain as explaining
    from warmroute.observability.debug_client import DEFAULT_URL

    if bool(request_id) == (body is not None):
        raise ConfigurationError("give either a request id or --body FILE")
    if header and body is None:
        raise ConfigurationError("--header goes with --body: it is of a dry run's request")
    urls = debug_url or [DEFAULT_URL]
    if body is not None:
        text, routed = explaining.dry_run(body, path, urls[0], headers=header or (), as_json=as_json)
        typer.echo(text)
        raise typer.Exit(0 if routed else 1)
    if decision_log:
        text = explaining.logged(request_id, decision_log, as_json=as_json)
    else:
        text = explaining.remembered(request_id, urls, as_json=as_json)
    typer.echo(text)


@app.command(epilog="Example: warmroute top --once")
def top(
    *,
    debug_url: Annotated[str, typer.Option(help="A picker's debug port.")] = "http://127.0.0.1:9091",
    once: Annotated[bool, typer.Option("--once", help="Print the state once and exit.")] = False,
) -> None:
    """Show what the fleet does, once a second, until Ctrl-C: the live page of the debug port in a terminal.

    With more than twelve engines the worst come first. Where two numbers stand for requests, the first is the picker's count
    and the second the engine's; of cached tokens the first is the expected and the second the measured share.
    """
    from rich.console import Console

    from warmroute import top as page

    try:
        page.show(debug_url, Console(highlight=False), once=once)
    except KeyboardInterrupt:
        pass


@app.command("gateway-extension", epilog="Example: warmroute gateway-extension --port 5005 --no-picker-tls")
def gateway_extension(
    *,
    host: Annotated[str, typer.Option(help="Address to listen on; empty: all interfaces.")] = "",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the extension service.")] = 5005,
    health_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the gRPC health service.")] = 5006,
    metrics_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the Prometheus metrics.")] = 9090,
    cert_path: Annotated[
        Path | None, typer.Option(help="Directory with tls.crt and tls.key for the service; without it: no TLS.")
    ] = None,
    request_body_limit: Annotated[
        int, typer.Option(min=1, help="Bytes of a request body that Envoy buffers; as the picker's --max-body-bytes.")
    ] = Settings.model_fields["max_body_bytes"].default,
    listener_body_limit: Annotated[
        bool, typer.Option(help="Set that limit on the listener: for Envoy before 1.36 (Envoy Gateway 1.5).")
    ] = False,
    picker_tls: Annotated[bool, typer.Option(help="Speak TLS to the pickers, without verification.")] = True,
    pods_service: Annotated[
        str,
        typer.Option(
            help="Headless Service of a pool's pods, as `{pool}-pods`: keeps retries and FailOpen; empty: none."
        ),
    ] = "",
    write_pool_status: Annotated[
        bool, typer.Option(help="Write the status of the pools served: Envoy Gateway writes none.")
    ] = False,
    log_format: Annotated[str, typer.Option(help="console or json.")] = "console",
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Serve Envoy Gateway's extension hooks, so that an HTTPRoute may have an InferencePool as backend."""
    from warmroute import runtime

    runtime.prepare(os.environ)
    from warmroute.gateway_extension import server
    from warmroute.gateway_extension.hooks import Options
    from warmroute.observability import logs

    logs.configure(load({"log_format": log_format, "log_level": log_level}, environ={}))
    server.serve(
        server.ServerOptions(host, port, health_port, metrics_port, cert_path),
        Options(
            request_body_limit=request_body_limit,
            listener_body_limit=listener_body_limit,
            picker_tls=picker_tls,
            pods_service=pods_service,
        ),
        write_pool_status=write_pool_status,
    )


@app.command(epilog="Example: warmroute settings > settings.md")
def settings() -> None:
    """Print all settings of `warmroute serve` with default and meaning, as Markdown."""
    typer.echo(table.markdown())


def _warn(text: str) -> None:
    typer.echo(f"warmroute: {text}", err=True)


def main() -> None:
    """Entry point of the ``warmroute`` script. A WarmrouteError becomes one line on stderr and exit code 2.

    So does a full disk under standard output, with exit code 1.
    """
    arguments = sys.argv[1:]
    try:
        if arguments[:1] == ["serve"]:
            flags, warnings = go_flags.translated(arguments[1:])
            for warning in warnings:
                _warn(warning)
            arguments = ["serve", *flags]
        app(arguments)
    except WarmrouteError as error:
        _warn(str(error))
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        _warn(f"cannot write: {error.strerror}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the exit would write the rest once more
        sys.exit(1)
