"""The floor: an ext_proc server on grpcio that answers constants.

Its cost is gRPC, protobuf, Python's event loop and two messages each way. Run it with
``python -m warmroute_lab.overhead.bare_server``.
"""

from __future__ import annotations

import argparse
from typing import Any

import grpc
import orjson
import uvloop

from warmroute import runtime
from warmroute.extproc import replies
from warmroute.extproc.ext_proc_pb2 import ProcessingRequest

METHOD = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"


async def serve(port: int, target: str, *, decode: bool) -> None:
    """Answer every request with ``target`` until cancelled; decode its JSON body first if ``decode``."""
    answer = replies.destination_in_body(target)

    async def process(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.read()
        await context.write(replies.CONTINUE_REQUEST_HEADERS)
        message = await context.read()
        if decode:
            orjson.loads(message.request_body.body)
        await context.write(answer)

    server = grpc.aio.server(options=(("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)))
    service, _, name = METHOD.strip("/").partition("/")
    handler = grpc.stream_stream_rpc_method_handler(process, request_deserializer=ProcessingRequest.FromString)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {name: handler}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    runtime.settle()
    await server.wait_for_termination()


def main() -> None:
    """Entry point of the child process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--target", required=True, help="ip:port to answer with")
    parser.add_argument("--decode", action="store_true", help="decode the JSON body")
    options = parser.parse_args()
    uvloop.run(serve(options.port, options.target, decode=options.decode))


if __name__ == "__main__":
    main()
