"""Envoy and its configuration, and the processes of ``warmroute up``: pickers, NATS and Envoy on one machine."""
