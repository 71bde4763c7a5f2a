"""Endpoints, models and settings from a Kubernetes cluster, and the Lease of the active picker."""
