"""How Envoy treats pickers and engines that fail: values for both writers of Envoy's configuration.

:mod:`warmroute.standalone.bootstrap` writes the file of a standalone Envoy, :mod:`warmroute.gateway_extension.hooks` changes
the configuration of an Envoy Gateway. docs/envoy.md has the measurements.
"""

from __future__ import annotations

MESSAGE_TIMEOUT = 5
"""Seconds that Envoy waits for one answer of the picker; an answer takes about a millisecond."""
PICKER_RETRY_ON = "connect-failure,refused-stream,reset,unavailable,cancelled"
"""When a stream to the picker is opened again: nobody listens, the connection broke before the picker answered anything, the
picker does not know its pool yet (UNAVAILABLE) or is ending (CANCELLED). A stream with an answer cannot be repeated."""
PICKER_BACK_OFF = (25, 250)
"""Base and longest interval between two attempts, in milliseconds; Envoy's default base is a second."""
ENGINE_RETRY_ON = "connect-failure,refused-stream,reset-before-request"
"""When a request is sent to another engine: the first one has not begun to work on it."""
ENGINE_RETRIES = 2
PREVIOUS_HOSTS = "envoy.retry_host_predicates.previous_hosts"
"""Retries go to a host that has not failed this request yet: load balancing alone may choose the failed one again."""
HOST_SELECTIONS = 20
"""Most draws of a host for one retry; with two hosts every second draw is the other one."""
MAX_REQUESTS = 40_000
"""Circuit breakers of a cluster: Envoy's defaults are less than a busy pool has in flight (1,024 requests), and less than
are repeated after a picker or an engine has died (3 retries)."""
