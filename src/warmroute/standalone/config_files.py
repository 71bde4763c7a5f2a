"""The files of Envoy and the picker for given engines, to run the two by hand."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from warmroute.errors import ConfigurationError
from warmroute.standalone.bootstrap import bootstrap, to_yaml
from warmroute.standalone.engine_list import EngineList, document
from warmroute.standalone.proxy_config import Picking, ProxyConfig
from warmroute.standalone.up_options import UpOptions

PICKER_PORT = 9002
"""The picker's ext_proc port, the default of `warmroute serve`."""
ADMIN_PORT = 9901
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

    Raises ConfigurationError if one cannot be written or exists already, if a port is 0, or for several pickers.
    """
    if 0 in (options.port, options.plain_port):
        raise ConfigurationError("--write-config needs fixed ports")
    if options.pickers > 1:
        raise ConfigurationError("--write-config writes the configuration of one picker: leave --pickers out")
    listed = asyncio.run(engines.look())
    config = ProxyConfig(
        epp=(f"127.0.0.1:{PICKER_PORT}",),
        endpoints=tuple(engine.target for engine in listed),
        host=options.host,
        port=options.port,
        plain_port=options.plain_port,
        admin_port=ADMIN_PORT,
        name_endpoint=True,
        access_log=options.access_log,
    )
    files = {
        "endpoints.yaml": "# The engines, for warmroute serve --endpoints-file. It is read again whenever it changes.\n"
        + document(listed)
    }
    for name, picking, text in (
        ("envoy-override-host.yaml", Picking.OVERRIDE_HOST, OVERRIDE_HOST),
        ("envoy-original-dst.yaml", Picking.ORIGINAL_DST, ORIGINAL_DST),
    ):
        files[name] = to_yaml(bootstrap(replace(config, picking=picking)), text + _start(name, options))
    if there := [name for name in files if (directory / name).exists()]:
        raise ConfigurationError(f"{directory / there[0]} exists and is not overwritten: choose another directory")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (directory / name).write_text(content, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"cannot write to {directory}: {error.strerror}") from error
    return [directory / name for name in files]


def _start(file: str, options: UpOptions) -> str:
    """How to start the two, and what listens where."""
    plain = f"Port {options.plain_port} balances by least requests over the same engines.\n" * bool(options.plain_port)
    return (
        "Start both in this directory:\n"
        f"  warmroute serve --endpoints-file endpoints.yaml --host 127.0.0.1 --grpc-port {PICKER_PORT} \\\n"
        f"      --secure-serving=false --routing-strategy {shlex.quote(options.strategy or 'PREFIX_CACHE')}\n"
        f"  envoy -c {file} --log-level warning    (Envoy 1.36 or newer; Warmroute's extra `standalone` brings one)\n"
        f"Requests go to http://{options.host}:{options.port}; the address stands in `listeners` below.\n"
        f"{plain}Destination headers of clients are removed: only the picker chooses the endpoint of a request."
    )
