"""Why an ext_proc stream ends without an answer to its request: values of labels of metrics."""

from __future__ import annotations

from typing import Literal

RefusalReason = Literal["max-streams", "not-synced"]
"""It is ended before its first message."""
StreamFault = Literal["protocol-error", "internal"]
"""It is ended by an error: the proxy's, or a bug of the picker."""
