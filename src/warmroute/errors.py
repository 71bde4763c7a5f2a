"""The errors of Warmroute: one small hierarchy.

Exceptions are for start-up and for broken peers. An ordinary outcome of a request (a malformed body, no endpoint, a shed
request) is a value instead: :class:`warmroute.request.rejections.Rejection`.

The tree, with the module of each that is not defined here::

    WarmrouteError
        ConfigurationError
        ProtocolError
            UnexpectedMessageError  extproc.transitions
        ScrapeError
            StatusError             engines.probe
        ApiError                    kubernetes.api
        ChildError                  standalone.child
        DebugPortError              observability.debug_client
        LogError                    shared_state.nats_log
        PageError                   observability.page_server
        UnknownDecisionError        explain
        UnreadableError             shared_state.seal
        UnusableValuesError         routing.strategies

Two errors are not in it, since they do not leave their room: ``NoConnectionError`` of ``engines.fetch``, an ``OSError`` as
those of the socket beside it, and ``_ConnectionFaultError`` of ``grpc_server.connection``.
"""

from __future__ import annotations


class WarmrouteError(Exception):
    """Base of every error that Warmroute raises on purpose."""


class ConfigurationError(WarmrouteError):
    """A setting, a file or a manifest is wrong; the message names it and the fault, for the user."""


class ProtocolError(WarmrouteError):
    """The proxy sent messages in an order that the ext_proc protocol does not allow."""


class ScrapeError(WarmrouteError):
    """One engine's metrics page is unavailable or cannot be used."""
