"""Endpoints, models and settings from an InferencePool of a Kubernetes cluster, and leader election."""
