"""A dry run: the decision that a request would get now. Nothing is decided and nothing is counted on an endpoint."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from warmroute.extproc.ext_proc_pb2 import HttpBody, ProcessingRequest
from warmroute.extproc.reading_threads import ReadingThreads
from warmroute.extproc.session import Session
from warmroute.request.rejections import Rejection
from warmroute.routing.decision_record import DecisionRecord


class DryRun:
    """Takes requests through sessions of their own, so that the limits of ext_proc requests hold for them too."""

    def __init__(self, new_session: Callable[[], Session], threads: ReadingThreads, clock: Callable[[], float]) -> None:
        self._new_session = new_session
        self._threads = threads
        self._clock = clock

    async def run(
        self, headers: Mapping[str, str], read_body: Callable[[], Awaitable[bytes]]
    ) -> DecisionRecord | Rejection:
        """The record of the decision, or why the request would be rejected.

        ``headers`` are the request's, ``:path`` among them. ``read_body`` is called once the headers are accepted; what it
        raises is raised.
        """
        session = self._new_session()
        try:
            head = ProcessingRequest()
            for name, value in headers.items():
                head.request_headers.headers.headers.add(key=name, raw_value=value.encode())
            session.receive(head, self._clock())
            if session.rejection is None:
                body = await read_body()
                session.receive(ProcessingRequest(request_body=HttpBody(body=body, end_of_stream=True)), self._clock())
            if session.complete:
                await self._threads.parse(session)
            return session.rejection or session.preview(self._clock())
        finally:
            session.finish(self._clock())
