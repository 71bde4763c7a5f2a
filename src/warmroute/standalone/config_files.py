"""The files of Envoy and the picker for given engines, to run the two by hand."""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from warmroute.errors import ConfigurationError
from warmroute.routing.strategies import absolute
from warmroute.settings.settings import Settings
from warmroute.standalone.bootstrap import bootstrap, to_yaml
from warmroute.standalone.engine_list import EngineList, document
from warmroute.standalone.proxy_config import Picking, ProxyConfig
from warmroute.standalone.up_options import UpOptions, picker_settings

ADMIN_PORT = 9901
ENDPOINTS = "# The engines, for warmroute serve --endpoints-file. It is read again whenever it changes.\n"
OVERRIDE_HOST = """Envoy with an endpoint picker, by override_host: the picked endpoint if it is one of those below, else
least requests. Fail-open: while the picker does not answer, requests are balanced without it.

When the engines change, change endpoints.yaml and load_assignment below.
"""
ORIGINAL_DST = """Envoy with an endpoint picker, by ORIGINAL_DST: Envoy connects to the address that the picker names, so
only the picker needs to know the engines. Without the picker, requests get 503.

When the engines change, change endpoints.yaml.
"""


def write(engines: EngineList, options: UpOptions, directory: Path) -> Sequence[Path]:
    """Write the files that Envoy and the picker need; returns their paths.

    Raises ConfigurationError if one cannot be written or exists already, if a port is 0, for several pickers, or for
    settings that the picker would not start with.
    """
    settings = picker_settings(options.picker_environ(os.environ))
    if 0 in (options.port, options.plain_port, settings.grpc_port):
        raise ConfigurationError("--write-config needs fixed ports")
    if options.pickers > 1:
        raise ConfigurationError("--write-config writes the configuration of one picker: leave --pickers out")
    listed = asyncio.run(engines.look())
    config = ProxyConfig(
        epp=(f"127.0.0.1:{settings.grpc_port}",),
        endpoints=tuple(engine.target for engine in listed),
        host=options.host,
        port=options.port,
        plain_port=options.plain_port,
        admin_port=ADMIN_PORT,
        name_endpoint=True,
        access_log=options.access_log,
        response_headers=settings.observe_responses,
    )
    files = {
        "endpoints.yaml": engines.file.read_text(encoding="utf-8") if engines.file else ENDPOINTS + document(listed)
    }
    for name, picking, text in (
        ("envoy-override-host.yaml", Picking.OVERRIDE_HOST, OVERRIDE_HOST),
        ("envoy-original-dst.yaml", Picking.ORIGINAL_DST, ORIGINAL_DST),
    ):
        files[name] = to_yaml(bootstrap(replace(config, picking=picking)), text + _start(name, options, settings))
    if there := [name for name in files if (directory / name).exists()]:
        raise ConfigurationError(f"{directory / there[0]} exists and is not overwritten: choose another directory")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (directory / name).write_text(content, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"cannot write to {directory}: {error.strerror}") from error
    return [directory / name for name in files]


def _start(file: str, options: UpOptions, settings: Settings) -> str:
    """How to start the two, and what listens where."""
    flags = ["--routing-strategy", shlex.quote(absolute(settings.routing_strategy))]
    if settings.observe_responses:
        flags.append("--observe-responses")
    if options.access_log:
        flags.append("--decision-metadata")
    plain = ""
    if options.plain_port is not None:
        plain = f"Port {options.plain_port} balances by least requests over the same engines.\n"
    return (
        "Start both in this directory:\n"
        f"  warmroute serve --endpoints-file endpoints.yaml --host 127.0.0.1 --grpc-port {settings.grpc_port} \\\n"
        f"      --secure-serving=false {' '.join(flags)}\n"
        f"  envoy -c {file} --log-level warning    (Envoy 1.36 or newer; Warmroute's extra `standalone` brings one)\n"
        "Other settings of WARMROUTE_ variables are not written here: set the variables for warmroute serve, too.\n"
        f"Requests go to http://{options.host}:{options.port}; the address stands in `listeners` below.\n"
        f"{plain}Destination headers of clients are removed: only the picker chooses the endpoint of a request."
    )
