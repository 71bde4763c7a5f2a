"""A gRPC server in one thread: HTTP/2 on the event loop, without grpcio.

grpcio gives each RPC to its own threads, which wake the event loop four times for a small request. Here the event loop
reads the socket itself, and a handler is called for each message: the two messages of an ext_proc request cost a fifth of
the CPU (docs/benchmarks.md has the figures). What gRPC has beyond that (compression, deadlines, reflection) is left out.

:mod:`~warmroute.grpc_server.connection` is the protocol, without IO; :mod:`~warmroute.grpc_server.server` the sockets;
:mod:`~warmroute.grpc_server.unary` the calls with one message each way.
"""
