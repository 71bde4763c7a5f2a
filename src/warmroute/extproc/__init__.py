"""What Envoy says and hears: the ext_proc session, its replies, the gRPC server."""
