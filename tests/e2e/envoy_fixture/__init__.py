"""The parts around a real Envoy in end-to-end tests: engines, pickers, a raw HTTP/1.1 client."""

from typing import Any

NO_RETRIES: dict[str, Any] = {"retries": 0, "retry_on": ""}
"""Options of an Envoy that shows each failure as it is."""
