"""A Kubernetes API server in the test's process, and objects to put into it."""
