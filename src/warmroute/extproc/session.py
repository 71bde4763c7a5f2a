"""One HTTP request as Envoy tells it: a state machine without IO. A message in, replies out.

::

    START --headers--> BODY --end of body--> ANSWERED --response messages--> ANSWERED --> CLOSED
      |                                         ^
      +---- no body, or mode NONE/STREAMED -----+

What Envoy waits for depends on the body mode, which it names in its first message:

=====================  ===============================================================================
NONE, no body          the endpoint in the answer to the headers
STREAMED               the same; then each chunk is acknowledged
BUFFERED               headers acknowledged; the endpoint in the answer to the one body message
BUFFERED_PARTIAL       the same, of a body that may be cut off
FULL_DUPLEX_STREAMED   nothing until the body has ended (by flag or by trailers), then headers and the whole body back
=====================  ===============================================================================

Trailers without a body bring no body message: in the two buffered modes they are answered with the endpoint, as metadata.

After the answer the stream is closed, so that a crash of the picker cannot harm the request; but not while Envoy's response
body is in FULL_DUPLEX_STREAMED (it would be lost), and not if responses are observed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import Protocol

from warmroute.errors import ProtocolError
from warmroute.extproc import headers, replies, subset
from warmroute.extproc.ext_proc_pb2 import (
    BUFFERED,
    BUFFERED_PARTIAL,
    FULL_DUPLEX_STREAMED,
    NONE,
    STREAMED,
    HttpBody,
    HttpHeaders,
    Metadata,
    ProcessingRequest,
)
from warmroute.pool.models import Criticality, Model
from warmroute.request.inference import NO_PROMPT, InferenceRequest
from warmroute.request.parse import parse
from warmroute.request.rejections import Rejection, body_too_large, timed_out, unknown_model
from warmroute.request.rewrite import replace_model
from warmroute.request.truncated import is_whole
from warmroute.routing.decision import Decision

_AT_HEADERS = frozenset((NONE, STREAMED))
"""Body modes in which the endpoint is told in the answer to the headers."""
_AT_BODY = frozenset((BUFFERED, BUFFERED_PARTIAL))
"""Body modes in which it is told in the answer to the one body message."""


class Router(Protocol):
    """What a session asks of routing."""

    def pick(
        self,
        request: InferenceRequest,
        now: float,
        *,
        request_id: str = "",
        allowed: frozenset[str] | None = None,
    ) -> Decision | Rejection:
        """Choose an endpoint."""

    def opened(self, decision: Decision) -> None:
        """The end of the request will be reported."""

    def finished(self, decision: Decision, now: float) -> None:
        """The request has ended."""

    def served(self, decision: Decision, target: str, now: float) -> None:
        """Which endpoint served it."""


@dataclass(frozen=True, slots=True)
class SessionRules:
    """What the session is told by the settings of the same names."""

    max_body_bytes: int = 32 << 20
    max_json_values: int = 1 << 20
    observe_responses: bool = False
    enable_conformance_headers: bool = False
    disable_endpoint_subset_filter: bool = False
    strict_models: bool = False
    shed_up_to: Criticality | None = Criticality.SHEDDABLE
    """Requests up to here are refused while the pool is saturated; None: none is (the setting ``shedding``)."""


class State(Enum):
    """Where in the request the session is."""

    START = auto()
    BODY = auto()
    """Headers seen, the body is not complete."""
    ANSWERED = auto()
    """The endpoint, or a rejection, is told."""
    CLOSED = auto()
    """Nothing more will be answered; the stream is to be ended."""


class UnexpectedMessageError(ProtocolError):
    """A message that cannot come in the session's present state."""

    def __init__(self, kind: str, state: State) -> None:
        super().__init__(f"{kind} in state {state.name}")
        self.kind = kind
        self.state = state


class Session:
    """The ext_proc stream of one HTTP request.

    ``receive`` takes each message with the time (monotonic seconds) and gives the serialised replies in order; ``finish``
    must be called when the stream has ended, however it ended. ``decision``, ``rejection`` and the other attributes tell the
    owner what happened.
    """

    __slots__ = (
        "_chance",
        "_chunks",
        "_criticality",
        "_exact",
        "_headers",
        "_metadata",
        "_models",
        "_objectives",
        "_request_mode",
        "_response_mode",
        "_router",
        "_rules",
        "_shadowed",
        "_tracked",
        "body_bytes",
        "decision",
        "rejection",
        "request",
        "response_status",
        "served",
        "state",
    )

    def __init__(
        self,
        router: Router,
        rules: SessionRules,
        *,
        models: Callable[[str], Model | None],
        objectives: Callable[[str], Criticality | None],
        chance: Callable[[], float],
    ) -> None:
        self._router = router
        self._rules = rules
        self._models = models
        self._objectives = objectives
        self._chance = chance
        self._headers: dict[str, str] = {}
        self._metadata: Metadata | None = None
        self._chunks: list[bytes] = []
        self._criticality = Criticality.STANDARD
        self._request_mode = BUFFERED  # what gateways use that do not tell
        self._response_mode = NONE
        self._tracked = False
        self._exact = False
        self._shadowed = False
        self.state = State.START
        self.body_bytes = 0
        """Bytes of request body received."""
        self.request: InferenceRequest = NO_PROMPT
        self.decision: Decision | None = None
        self.rejection: Rejection | None = None
        self.response_status: int | None = None
        """The engine's HTTP status, where the gateway shows responses."""
        self.served: str | None = None
        """``ip:port`` that served the request, where the gateway tells."""

    @property
    def request_id(self) -> str:
        """The gateway's ``x-request-id``."""
        return self._headers.get("x-request-id", "")

    @property
    def answered(self) -> bool:
        """The decision or the rejection is told."""
        return self.decision is not None or self.rejection is not None

    @property
    def closed(self) -> bool:
        """The stream is to be ended from our side."""
        return self.state is State.CLOSED

    @property
    def overdue_matters(self) -> bool:
        """Whether Envoy waits without a timeout of its own, so that the owner must set one."""
        if self.state is State.START:
            return not self._shadowed
        return self.state is State.BODY and self._request_mode == FULL_DUPLEX_STREAMED

    def receive(self, message: ProcessingRequest, now: float) -> list[bytes]:
        """The replies to one message. Raises :class:`UnexpectedMessageError`; after that the stream is to be aborted."""
        if message.observability_mode:
            self._shadowed = True
            return []
        kind = message.WhichOneof("request")
        if kind is None:  # newer protocol versions send messages that mean nothing to us
            return []
        if self.state is State.CLOSED:
            raise UnexpectedMessageError(kind, self.state)
        if self.state is State.START and message.HasField("protocol_config"):
            self._request_mode = message.protocol_config.request_body_mode
            self._response_mode = message.protocol_config.response_body_mode
        if self.decision is None and message.HasField("metadata_context"):
            self._metadata = message.metadata_context
        match kind:
            case "request_headers":
                return self._request_headers(message.request_headers, now)
            case "request_body":
                return self._request_body(message.request_body, now)
            case "request_trailers":
                return self._request_trailers(now)
            case _:
                return [self._response(kind, message, now)]

    def overdue(self) -> bytes:
        """The answer where the request did not arrive in time."""
        return self._reject(timed_out("The request body did not arrive in time."))

    def failed(self) -> bytes:
        """The answer where something of ours broke before the request was answered."""
        return self._reject(Rejection(500, "internal_error", "The endpoint picker failed.", "internal"))

    def finish(self, now: float) -> None:
        """The stream has ended. Safe to call more than once."""
        self.state = State.CLOSED
        self._chunks.clear()
        if self._tracked and self.decision is not None:
            self._tracked = False
            self._router.finished(self.decision, now)

    # ---------------------------------------------------------------- request phase

    def _request_headers(self, message: HttpHeaders, now: float) -> list[bytes]:
        if self.state is not State.START:
            raise UnexpectedMessageError("request_headers", self.state)
        self._headers = headers.read(message.headers)
        self.state = State.BODY
        mode = self._request_mode
        if message.end_of_stream or mode in _AT_HEADERS:
            answer = self._pick(now, self._in_headers)
            if message.end_of_stream or mode == NONE:
                self._close_if_safe()
            return [answer]
        length = headers.number(self._headers.get("content-length", ""))
        if length is not None and length > self._rules.max_body_bytes:
            return [self._reject(body_too_large(self._rules.max_body_bytes))]
        self._exact = mode in _AT_BODY or self._response_mode == FULL_DUPLEX_STREAMED
        return [] if mode == FULL_DUPLEX_STREAMED else [replies.CONTINUE_REQUEST_HEADERS]

    def _request_body(self, message: HttpBody, now: float) -> list[bytes]:
        mode = self._request_mode
        if self.state is State.ANSWERED:
            # STREAMED acknowledges each chunk. In FULL_DUPLEX_STREAMED some Envoys repeat the end of the stream.
            if mode == FULL_DUPLEX_STREAMED:
                return []
            if message.end_of_stream:
                self._close_if_safe()
            return [replies.CONTINUE_REQUEST_BODY]
        self.state = State.BODY
        body = message.body  # each look at the field copies it
        self.body_bytes += len(body)
        if self.body_bytes > self._rules.max_body_bytes:
            return [self._reject(body_too_large(self._rules.max_body_bytes))]
        if mode == FULL_DUPLEX_STREAMED:
            self._chunks.append(body)
            return self._answer_duplex(now, trailers=False) if message.end_of_stream else []
        # A body that is followed by trailers does not end the stream either.
        truncated = mode == BUFFERED_PARTIAL and not message.end_of_stream and not is_whole(body)
        new_body = self._understand(body, truncated=truncated)
        if new_body is None:
            answer = self._pick(now, self._in_body)
        elif isinstance(new_body, Rejection):
            answer = self._reject(new_body)
        else:
            answer = self._pick(now, partial(self._in_new_body, body=new_body))
        self._close_if_safe()
        return [answer]

    def _request_trailers(self, now: float) -> list[bytes]:
        if self.state is State.START:
            raise UnexpectedMessageError("request_trailers", self.state)
        answers = []
        if self.state is State.BODY:
            if self._request_mode != FULL_DUPLEX_STREAMED:  # there was no body
                answer = self._pick(now, replies.destination_in_trailers)
                self._close_if_safe()
                return [answer]
            answers = self._answer_duplex(now, trailers=True)
        if self.rejection is None:
            answers.append(replies.CONTINUE_REQUEST_TRAILERS)
        return answers

    def _answer_duplex(self, now: float, *, trailers: bool) -> list[bytes]:
        body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        new_body = self._understand(body, truncated=False)
        if isinstance(new_body, Rejection):
            return [self._reject(new_body)]
        length = None if new_body is None else len(new_body)
        answers = [self._pick(now, partial(self._in_headers, content_length=length))]
        if self.rejection is None:
            if body or not trailers:  # an empty body before trailers would be an answer to nothing
                whole = body if new_body is None else new_body
                answers += replies.streamed_request_body(whole, end_of_stream=not trailers)
            self._close_if_safe()
        return answers

    def _understand(self, body: bytes, *, truncated: bool) -> Rejection | bytes | None:
        """Parse the body and resolve its model: sets ``self.request``; the new body where the model's name changes."""
        if not body:
            return None
        known = self._headers
        request = parse(
            known.get(":path", ""),
            known.get("content-type", ""),
            body,
            truncated=truncated,
            max_values=self._rules.max_json_values,
            model=known.get(headers.MODEL_NAME, ""),
        )
        if isinstance(request, Rejection):
            return request
        if truncated:
            request = request.cut_off(len(body), headers.number(known.get("content-length", "")))
        self.request = request
        if not request.model:
            return None
        asked = self._first(headers.MODEL_REWRITES) or request.model
        model = self._models(asked)
        if model is None:
            if self._rules.strict_models:
                return unknown_model(asked)
            name = asked
        else:
            name = model.draw(self._chance())
            self._criticality = model.criticality
        if truncated:  # half a body cannot be rewritten
            name = request.model
        if name == request.model:
            return None
        self.request = request.with_model(name)
        return replace_model(body, name)

    def _pick(self, now: float, answer: Callable[[str], bytes]) -> bytes:
        criticality = self._objectives(self._first(headers.OBJECTIVES))
        if criticality is None:
            criticality = self._criticality
        shed_up_to = self._rules.shed_up_to
        if shed_up_to is not None and criticality <= shed_up_to:
            self.request = self.request._replace(sheddable=True)
        fairness_id = self._first(headers.FAIRNESS_IDS)
        if fairness_id:
            self.request = self.request._replace(fairness_id=fairness_id)
        result = self._router.pick(self.request, now, request_id=self.request_id, allowed=self._allowed())
        if isinstance(result, Rejection):
            return self._reject(result)
        self.decision = result
        self.state = State.ANSWERED
        if self._rules.observe_responses and self._exact:
            self._tracked = True
            self._router.opened(result)
        return answer(result.targets)

    def _allowed(self) -> frozenset[str] | None:
        if self._rules.enable_conformance_headers and self._headers.get(headers.TEST_SELECTION):
            return subset.members(self._headers[headers.TEST_SELECTION].split(","))
        if self._metadata is None or self._rules.disable_endpoint_subset_filter:
            return None
        entries = subset.hinted(self._metadata)
        return None if entries is None else subset.members(entries)

    def _reject(self, rejection: Rejection) -> bytes:
        self.rejection = rejection
        self.state = State.CLOSED
        self._chunks.clear()
        return replies.reject(rejection, self._headers.get(":path", ""))

    def _close_if_safe(self) -> None:
        rules = self._rules
        if (
            self.state is State.ANSWERED
            and self._response_mode != FULL_DUPLEX_STREAMED
            and not rules.observe_responses
            and not rules.enable_conformance_headers
        ):
            self.state = State.CLOSED

    def _first(self, names: tuple[str, ...]) -> str:
        """The first of these request headers that is there and not empty."""
        for name in names:
            value = self._headers.get(name)
            if value:
                return value
        return ""

    def _consumed(self) -> tuple[str, ...]:
        known = self._headers
        return tuple([name for name in headers.CONSUMED if name in known])

    def _in_headers(self, targets: str, content_length: int | None = None) -> bytes:
        return replies.destination_in_headers(
            targets,
            content_length=content_length,
            remove=self._consumed(),
            echo=self._rules.enable_conformance_headers,
        )

    def _in_body(self, targets: str) -> bytes:
        return replies.destination_in_body(
            targets, remove=self._consumed(), echo=self._rules.enable_conformance_headers
        )

    def _in_new_body(self, targets: str, body: bytes) -> bytes:
        return replies.destination_and_body(
            targets, body, remove=self._consumed(), echo=self._rules.enable_conformance_headers
        )

    # ---------------------------------------------------------------- response phase

    def _response(self, kind: str, message: ProcessingRequest, now: float) -> bytes:
        if self.state is not State.ANSWERED:
            # Envoy's own answers (413, a client that went away) reach us as a response before the request was complete.
            self.state = State.ANSWERED
        match kind:
            case "response_headers":
                return self._response_headers(message, now)
            case "response_body":
                body = message.response_body
                if self._response_mode == FULL_DUPLEX_STREAMED:
                    return replies.streamed_response_body(body.body, end_of_stream=body.end_of_stream)
                return replies.CONTINUE_RESPONSE_BODY
            case _:
                return replies.CONTINUE_RESPONSE_TRAILERS

    def _response_headers(self, message: ProcessingRequest, now: float) -> bytes:
        if self.decision is not None:  # else it is Envoy's own answer
            self.response_status = headers.number(headers.read(message.response_headers.headers).get(":status", ""))
        namespace = message.metadata_context.filter_metadata
        fields = namespace[headers.LB_NAMESPACE].fields if headers.LB_NAMESPACE in namespace else {}
        if headers.SERVED in fields:
            self.served = fields[headers.SERVED].string_value
            if self._tracked and self.decision is not None:
                self._router.served(self.decision, self.served, now)
        if self._rules.enable_conformance_headers:
            missing = "destination endpoint served" if fields else "envoy lb"
            return replies.served_in_headers(self.served or f"fail: missing {missing} metadata")
        return replies.CONTINUE_RESPONSE_HEADERS
