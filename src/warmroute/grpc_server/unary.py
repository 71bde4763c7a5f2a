"""Calls with one message each way, such as health checks."""

from __future__ import annotations

import logging
from collections.abc import Callable

from google.protobuf.message import DecodeError

from warmroute.grpc_server.connection import Call, Method
from warmroute.grpc_server.frames import Status

logger = logging.getLogger(__name__)


class Unary:
    """The handler of a method with one message each way. ``answer`` takes and returns serialised messages.

    ``long_messages``: messages may have :data:`~warmroute.grpc_server.connection.LONG_MESSAGE` bytes and more.
    """

    def __init__(self, call: Call, answer: Callable[[bytes], bytes], *, long_messages: bool) -> None:
        self._call = call
        self._answer = answer
        self._long_messages = long_messages
        self._open: dict[Unary, None] = {}

    def count_in(self, calls: dict[Unary, None]) -> None:
        """Be in ``calls`` until the call is over."""
        self._open = calls
        calls[self] = None

    def give_up(self) -> None:
        """End the call in favour of another one."""
        self._call.finish(Status.RESOURCE_EXHAUSTED, "too many calls wait for their messages")
        self._call.abort()  # if its answer waits

    def message(self, data: bytes) -> None:
        """Answer, or report a failure to this client alone."""
        try:
            answer = self._answer(data)
        except DecodeError as error:
            self._call.finish(Status.INVALID_ARGUMENT, str(error))
            return
        except Exception:
            logger.exception("call failed", extra={"fields": {"method": self._call.path}})
            self._call.finish(Status.INTERNAL, "the method failed")
            return
        self._call.send(answer)
        self._call.finish()

    def arriving(self, size: int) -> None:
        """End the call if the message is too long for the method."""
        if not self._long_messages:
            self._call.finish(Status.RESOURCE_EXHAUSTED, "the message is too long for this method")

    def waiting(self, size: int) -> None:
        """Nothing: a call has one answer."""

    def half_closed(self) -> None:
        """No message came."""
        self._call.finish(Status.INTERNAL, "a message was expected")

    def written(self) -> None:
        """Nothing: the call ends then."""

    def closed(self) -> None:
        """Count it no more."""
        self._open.pop(self, None)


def unary(answer: Callable[[bytes], bytes], *, long_messages: bool = False) -> Method:
    """A method with one message each way; see :class:`Unary`."""
    return lambda call: Unary(call, answer, long_messages=long_messages)
