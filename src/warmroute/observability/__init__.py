"""Logs, Prometheus metrics, traces, debug pages and the live page."""
