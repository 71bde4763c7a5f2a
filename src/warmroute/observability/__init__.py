"""What operators see: logs, Prometheus metrics, debug pages."""
