"""A real Envoy, simulated engines and the endpoint picker, started together on one machine."""
