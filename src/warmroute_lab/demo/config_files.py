"""Envoy's configurations and the endpoints file, for use without the demo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from warmroute.errors import ConfigurationError
from warmroute.standalone.bootstrap import bootstrap, to_yaml
from warmroute.standalone.proxy_config import Picking
from warmroute_lab.demo.options import PORT_FLAGS, DemoOptions


def write_config(options: DemoOptions, directory: Path) -> Sequence[Path]:
    """Write the files that Envoy and the picker need; returns their paths.

    Raises ConfigurationError if one cannot be written or exists already, or if a port is 0.
    """
    if zero := [flag for name, flag in PORT_FLAGS.items() if getattr(options, name) == 0]:
        raise ConfigurationError(f"--write-config needs a fixed port for {zero[0]}")
    start = (
        f"  warmroute serve --endpoints-file endpoints.yaml --grpc-port {options.epp_port} --secure-serving=false \\\n"
        "      --routing-strategy PREFIX_CACHE\n"
        "  envoy -c {file}        (Envoy 1.40; Warmroute's extra `standalone` brings one)\n"
        f"Port {options.port} uses the picker; port {options.plain_port} balances by least requests over the same engines.\n"
        "Destination headers of clients are removed: only the picker chooses the endpoint of a request."
    )
    override_host = (
        "Envoy with an endpoint picker, by override_host: the picked endpoint if it is one of those below, otherwise least\n"
        "requests. Fail-open: while the picker does not answer, requests are balanced without it.\n\n"
        "Put your engines into endpoints.yaml and into load_assignment of both pools below, then:\n"
    )
    original_dst = (
        "Envoy with an endpoint picker, by ORIGINAL_DST: Envoy connects to the address that the picker names, so only the\n"
        "picker needs to know the engines. Without the picker, requests get 503.\n\n"
        "Put your engines into endpoints.yaml (and into plain_pool below, if you want the plain port), then:\n"
    )
    files = {
        "endpoints.yaml": "# The engines, for warmroute serve --endpoints-file. It is read again whenever it changes.\n"
        + options.endpoints_document()
    }
    for name, picking, text in (
        ("envoy-override-host.yaml", Picking.OVERRIDE_HOST, override_host),
        ("envoy-original-dst.yaml", Picking.ORIGINAL_DST, original_dst),
    ):
        config = bootstrap(options.proxy_config(picking))
        files[name] = to_yaml(config, text + start.replace("{file}", name))
    if there := [name for name in files if (directory / name).exists()]:
        raise ConfigurationError(f"{directory / there[0]} exists and is not overwritten: choose another directory")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (directory / name).write_text(content, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"cannot write to {directory}: {error.strerror}") from error
    return [directory / name for name in files]
