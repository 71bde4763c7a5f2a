"""Endpoint pickers to put behind the Envoy: a scripted one in this process, and ``warmroute serve`` as it is shipped."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from warmroute.extproc import ext_proc_pb2 as pb
from warmroute.standalone.child import Child
from warmroute.standalone.picker_process import PickerPorts, picker, start_picker
from warmroute.standalone.ports import free_port

EXT_PROC = "envoy.service.ext_proc.v3.ExternalProcessor"

Script = Callable[[grpc.aio.ServicerContext], Awaitable[None]]
"""Gets the stream's context: ``await context.read()`` gives ProcessingRequest or ``grpc.aio.EOF``,
``await context.write(pb.ProcessingResponse(...))`` answers."""


@asynccontextmanager
async def grpc_server(
    register: Callable[[grpc.aio.Server], None], *, health_service: bool = True
) -> AsyncIterator[str]:
    """A grpc.aio server on a free port with what ``register`` adds to it; yields its ``address:port``.

    With ``health_service`` it says SERVING to everything that Envoy may ask.
    """
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 64 << 20)])
    register(server)
    if health_service:
        servicer = health.aio.HealthServicer()
        for service in ("", EXT_PROC):
            await servicer.set(service, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(grace=0)


@asynccontextmanager
async def scripted_picker(script: Script, *, health_service: bool = True) -> AsyncIterator[str]:
    """An ext_proc server that runs ``script`` for each stream; yields its ``address:port``."""

    async def process(_messages: object, context: grpc.aio.ServicerContext) -> None:
        await script(context)

    handler = grpc.stream_stream_rpc_method_handler(
        process,
        request_deserializer=pb.ProcessingRequest.FromString,
        response_serializer=pb.ProcessingResponse.SerializeToString,
    )

    def register(server: grpc.aio.Server) -> None:
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(EXT_PROC, {"Process": handler}),))

    async with grpc_server(register, health_service=health_service) as target:
        yield target


def endpoints_document(targets: Iterable[str]) -> str:
    """The content of an ``--endpoints-file`` with the endpoints pod-0, pod-1, ..."""
    entries = []
    for i, target in enumerate(targets):
        address, _, port = target.rpartition(":")
        entries.append({"name": f"pod-{i}", "address": address.strip("[]"), "port": int(port)})
    return json.dumps({"endpoints": entries})


@asynccontextmanager
async def warmroute_serve(targets: Iterable[str], directory: Path, *flags: str) -> AsyncIterator[tuple[str, Child]]:
    """``warmroute serve`` over ``targets``, ready to be asked; yields its ``address:port`` and the process.

    ``directory`` gets its endpoints file ``endpoints.json`` and its log ``epp.log``; ``flags`` come last and so win.
    """
    endpoints = directory / "endpoints.json"
    endpoints.write_text(endpoints_document(targets))
    ports = PickerPorts(grpc=free_port(), health=free_port(), metrics=free_port())
    child = picker(endpoints, ports, directory / "epp.log", flags)
    try:
        await start_picker(child, ports)
        yield f"127.0.0.1:{ports.grpc}", child
    finally:
        await child.stop()
