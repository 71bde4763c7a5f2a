"""The demo: a real Envoy, simulated engines and the picker on one machine."""
