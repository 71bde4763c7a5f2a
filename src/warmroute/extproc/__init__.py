"""The ext_proc protocol: the session of one stream, its replies, and the service on the gRPC server."""
