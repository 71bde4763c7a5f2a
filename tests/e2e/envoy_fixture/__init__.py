"""The parts around a real Envoy in end-to-end tests: engines, pickers, a raw HTTP/1.1 client."""
