"""What the ext_proc server reports to metrics."""

from __future__ import annotations

from typing import Literal, Protocol

from warmroute.request.rejections import Rejection
from warmroute.request.stream_ends import RefusalReason, StreamFault
from warmroute.routing.decision import Decision


class Observer(Protocol):
    """What the server reports to; :class:`~warmroute.observability.metrics.Metrics` is one. Called on the event loop."""

    def stream_opened(self) -> None:
        """Envoy opened a stream."""

    def stream_refused(self, reason: RefusalReason) -> None:
        """Envoy opened a stream that was ended at once."""

    def stream_closed(self) -> None:
        """The stream has ended, well or not."""

    def stream_broken(self, reason: StreamFault) -> None:
        """The stream was ended by an error of the proxy or of the picker."""

    def picked(self, seconds: float) -> None:
        """The router took ``seconds`` to choose an endpoint or to reject."""

    def processed(self, seconds: float) -> None:
        """A request was answered after ``seconds`` of work."""

    def routed(self, decision: Decision, *, model: str, body_bytes: int) -> None:
        """A request for ``model`` was given an endpoint."""

    def rejected(self, rejection: Rejection, model: str) -> None:
        """A request was answered with an error."""

    def responded(self, status: int) -> None:
        """An engine answered a request with this HTTP status."""

    def reloaded(self, source: Literal["certificate"], *, ok: bool) -> None:
        """The certificate changed; not ``ok``: it cannot be used, and the former one stays."""
