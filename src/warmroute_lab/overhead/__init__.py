"""Benchmarks of the picker's own cost, measured beside a server that does the least possible."""
