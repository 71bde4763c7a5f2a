"""The ext_proc stream of one HTTP request, without IO: a message in, replies out.

Which message may come when, and what is done with it, is the table in :mod:`warmroute.extproc.transitions`; this file
carries the actions out. The replies depend on the body mode that Envoy names in its first message:

=====================  ===============================================================================
NONE, no body          the endpoint in the reply to the headers
STREAMED               likewise; then each chunk is acknowledged
BUFFERED               headers acknowledged; the endpoint in the reply to the one body message
BUFFERED_PARTIAL       likewise, of a body that may be cut off
FULL_DUPLEX_STREAMED   nothing until the body has ended (by flag or by trailers), then headers and the whole body back
=====================  ===============================================================================

The body of an upgrade, of CONNECT or of gRPC may not end before the response begins. Such a request gets its endpoint in the
reply to the headers, whatever the mode.

A request is answered in four steps, so that the owner can run the second one in a thread and measure the third::

    replies = session.receive(message, now)
    if session.complete:
        session.parse()        # not on the event loop if session.takes_long
        if session.rejection is None:
            session.pick(now)
        replies += session.reply()
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from warmroute.extproc import headers, replies, subset
from warmroute.extproc.budget import MemoryBudget
from warmroute.extproc.ext_proc_pb2 import (
    BUFFERED,
    BUFFERED_PARTIAL,
    FULL_DUPLEX_STREAMED,
    NONE,
    BodySendMode,
    HttpBody,
    ProcessingRequest,
)
from warmroute.extproc.transitions import (
    AWAITING_CLIENT,
    MODES,
    Action,
    State,
    Transition,
    next_state,
    transition,
)
from warmroute.extproc.wire import response_chunk
from warmroute.pool.models import Criticality, ModelTable
from warmroute.request.content_encoding import decode, decoded_limit, is_compressed
from warmroute.request.inference import NO_HEADERS, NO_PROMPT, InferenceRequest
from warmroute.request.limits import LONG_BODY, MANY_CONTAINERS, has_many_containers, memory_needed
from warmroute.request.parse import parse, parse_beginning
from warmroute.request.rejections import (
    Rejection,
    body_too_large,
    overloaded,
    timed_out,
    too_much_memory,
    unknown_model,
)
from warmroute.request.rewrite import replace_model
from warmroute.request.state_ids import creates_response, response_id, state_in_path
from warmroute.request.truncated import is_whole
from warmroute.routing.decision import Decision
from warmroute.routing.decision_record import DecisionRecord
from warmroute.routing.router import Router

RESPONSE_BEGINNING = 16 << 10
"""Bytes at the beginning of a response in which its id is looked for."""
LARGE_BODY = 1 << 20
"""Content length in bytes from which memory is reserved before the body comes."""
HEADERS_FREELY = 1 << 10
"""Bytes of memory that the headers and the subset hint of a request take freely; most take less."""
HEADERS_MEMORY = 64 << 20
"""Bytes of memory that those of all requests take at once, which have more and have not come completely."""
KEPT_NAME = 256
"""Characters of the model's name that stay with an answered stream. Metrics count longer ones than 128 as ``other``."""

_INTERNAL_ERROR = Rejection(500, "internal_error", "The endpoint picker failed.", "internal")
_OVERLOADED = overloaded("The endpoint picker has no memory for another request body now.")


@dataclass(frozen=True, slots=True)
class SessionRules:
    """A session's share of the settings, which :class:`~warmroute.settings.Settings` explains."""

    max_body_bytes: int
    max_json_values: int
    session_header: str
    observe_responses: bool
    decision_metadata: bool
    enable_conformance_headers: bool
    disable_endpoint_subset_filter: bool
    strict_models: bool
    shed_up_to: Criticality | None
    """Requests of this criticality and below are rejected while the pool is saturated; None: none (``shedding``)."""


class Session:
    """The ext_proc stream of one HTTP request.

    ``receive`` takes each message with the time (monotonic seconds) and returns the serialised replies in order; the
    module's docstring shows the steps that follow when ``complete`` is set. ``finish`` must be called when the stream has
    ended, however it ended. ``decision``, ``rejection`` and the other attributes say what happened.
    """

    __slots__ = (
        "_body",
        "_budget",
        "_chance",
        "_chunks",
        "_criticality",
        "_headers",
        "_headers_budget",
        "_headers_held",
        "_held",
        "_hint",
        "_in_flight",
        "_looked_through",
        "_models",
        "_new_body",
        "_pending",
        "_request_mode",
        "_response_mode",
        "_router",
        "_rules",
        "_stream_ends_with_response",
        "_takes_long",
        "_truncated",
        "_visible_headers",
        "body_bytes",
        "decision",
        "gateway_traceparent",
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
        models: ModelTable,
        budget: MemoryBudget,
        headers_budget: MemoryBudget,
        chance: Callable[[], float],
    ) -> None:
        self._router = router
        self._rules = rules
        self._models = models
        self._budget = budget
        self._headers_budget = headers_budget
        self._chance = chance
        self._headers: dict[str, str] = {}
        self._visible_headers = NO_HEADERS
        """For custom strategies."""
        self._headers_held = 0
        """Bytes taken from the budget of headers."""
        self._hint: bytes | None = None
        """The gateway's subset hint, serialised."""
        self._criticality = Criticality.STANDARD
        self._request_mode: BodySendMode = BUFFERED  # if the gateway does not name its mode
        self._response_mode: BodySendMode = NONE
        self._chunks: list[bytes] = []
        self._body = b""
        self._takes_long: bool | None = None
        """Whether a complete body takes long to read; None: not looked at."""
        self._truncated = False
        self._new_body: bytes | None = None
        self._held = 0
        """Bytes taken from the budget."""
        self._pending: Transition | None = None
        """The transition that answers the request; set once the request is complete."""
        self._stream_ends_with_response = False
        """Envoy keeps the stream open until the response has ended, so the stream shows whether the request is in flight."""
        self._looked_through = 0
        """Bytes of the response's body that are still to be looked through for its id."""
        self._in_flight = False
        """The router counts the request as in flight until ``finish``."""
        self.state = State.START
        self.body_bytes = 0
        """Bytes of request body received."""
        self.request: InferenceRequest = NO_PROMPT
        self.gateway_traceparent = ""
        """Trace context of the gateway's own span, if the owner knows it; it goes before that of the request's headers."""
        self.decision: Decision | None = None
        self.rejection: Rejection | None = None
        self.response_status: int | None = None
        """The engine's HTTP status, if the gateway shows responses."""
        self.served: str | None = None
        """``ip:port`` that served the request, if the gateway reports it."""

    @property
    def request_id(self) -> str:
        """The gateway's ``x-request-id``, bounded and without control characters."""
        return self._headers.get("x-request-id", "")

    @property
    def complete(self) -> bool:
        """The request can be answered: ``parse``, ``pick`` and ``reply`` are to be called."""
        return self._pending is not None

    @property
    def takes_long(self) -> bool:
        """``parse`` takes so long that it must not run on the event loop. A compressed body may be of any length."""
        if self.body_bytes < MANY_CONTAINERS:  # it is short, and a bracket is a byte
            return self.body_bytes > 0 and self._compressed
        if self._takes_long is None:
            pieces = self._chunks or [self._body]
            self._takes_long = self.body_bytes >= LONG_BODY or self._compressed or has_many_containers(pieces)
        return self._takes_long

    @property
    def _compressed(self) -> bool:
        encoding = self._headers.get("content-encoding")
        return encoding is not None and is_compressed(encoding)

    @property
    def answered(self) -> bool:
        """There is a decision or a rejection."""
        return self.decision is not None or self.rejection is not None

    @property
    def _keeps_request(self) -> bool:
        """What has come of the request is needed for its answer."""
        return self.state in _KEEPING

    @property
    def closed(self) -> bool:
        """The stream is to be ended from our side."""
        return self.state is State.CLOSED

    @property
    def awaits_client(self) -> bool:
        """The client has to send something: the owner sets it a deadline, unless it works on a :attr:`complete` request."""
        return self.state in AWAITING_CLIENT

    # ---------------------------------------------------------------- the stream's life

    def receive(self, message: ProcessingRequest, now: float) -> list[bytes]:
        """The replies to one message. Raises :class:`~warmroute.errors.ProtocolError`: then abort the stream."""
        if self.state is State.START:
            self._begin(message)
        if self.state is State.SHADOWED:
            return []
        kind = message.WhichOneof("request")
        if kind is None:  # newer protocol versions send messages that this one does not know
            return []
        with_metadata = self.decision is None and message.HasField("metadata_context")
        if with_metadata:
            self._hint = subset.hint_of(message.metadata_context)
        end_of_stream = kind in _WITH_END and getattr(message, kind).end_of_stream
        two_way = False
        if kind == "request_headers":
            self._headers = headers.read(message.request_headers.headers, self._rules.session_header)
            if self._router.uses_headers:
                self._visible_headers = headers.visible(message.request_headers.headers)
            two_way = not end_of_stream and headers.is_two_way(self._headers)
        step = transition(self.state, self._request_mode, kind, end_of_stream=end_of_stream, two_way=two_way)
        rejection = None
        if kind == "request_headers":
            rejection = self._take_headers(step.action)
        elif kind == "request_body":
            rejection = self._take_body(message.request_body, step.action)
        # What is answered at once is not kept.
        if (
            rejection is None
            and (kind == "request_headers" or with_metadata)
            and not (step.picks or self._hold_headers())
        ):
            rejection = _OVERLOADED
        if rejection is not None:
            return [self._reject(rejection)]
        if step.picks:
            self._pending = step
            return []
        self._move(step)
        return self._acknowledge(step.action, message, now)

    def pass_chunk(self, data: bytes) -> bytes | None:
        """The reply to a serialised message that only brings the next chunk of the response, in FULL_DUPLEX_STREAMED.

        None for all other messages: they are for :meth:`receive`.
        """
        if self.state is not State.ANSWERED or self._response_mode != FULL_DUPLEX_STREAMED or self._looked_through > 0:
            return None
        chunk = response_chunk(data)
        return None if chunk is None else replies.response_chunk(chunk)

    def parse(self) -> None:
        """Read the body and resolve its model: sets ``request``, or ``rejection``. May run in a thread."""
        if self._chunks:
            self._body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
            self._chunks.clear()
        if not self._body:
            return
        body = self._decoded() if self._compressed else self._body
        if body is None:
            return
        result = self._hold_for_reading(body) or self._read_body(body)
        if isinstance(result, Rejection):
            self.rejection = result
        else:
            self._new_body = result

    def pick(self, now: float) -> None:
        """Choose an endpoint: sets ``decision``, or ``rejection``. Raises what a custom strategy raises."""
        self._read_headers()
        result = self._router.pick(
            self.request,
            now,
            request_id=self.request_id,
            traceparent=self.gateway_traceparent or headers.trace_context(self._headers.get(headers.TRACEPARENT, "")),
            allowed=self._allowed(),
        )
        if isinstance(result, Rejection):
            self.rejection = result
            return
        self.decision = result
        if creates_response(self._headers.get(":path", "")):
            self._looked_through = RESPONSE_BEGINNING
        if self._rules.observe_responses and self._stream_ends_with_response:
            self._in_flight = True
            self._router.opened(result)

    def preview(self, now: float) -> DecisionRecord | Rejection:
        """The decision that :meth:`pick` would make, which is not made. Raises as it does."""
        self._read_headers()
        return self._router.preview(self.request, now, allowed=self._allowed())

    def _read_headers(self) -> None:
        """Put into the request what routing needs of the headers."""
        criticality = self._models.objective(self._first(headers.OBJECTIVES))
        if criticality is None:
            criticality = self._criticality
        shed_up_to = self._rules.shed_up_to
        if shed_up_to is not None and criticality <= shed_up_to:
            self.request = self.request._replace(sheddable=True)
        fairness_id = self._first(headers.FAIRNESS_IDS)
        if fairness_id:
            self.request = self.request._replace(fairness_id=fairness_id)
        visible = self._visible_headers
        if visible:
            session_id = visible.get(self._rules.session_header, "")
            self.request = self.request._replace(headers=visible, session_id=session_id)

        if not self.request.prompt_bytes and not self.request.state:
            state = self._state_of_unread()
            if state:
                self.request = self.request._replace(state=state)

    def _state_of_unread(self) -> str:
        """What a request without a prompt goes on with: what its path names, or the client's session."""
        known = self._headers
        return state_in_path(known.get(":path", "")) or known.get(self._rules.session_header, "")

    def reply(self) -> list[bytes]:
        """The replies that answer the complete request."""
        step = self._pending
        assert step is not None
        self._pending = None
        if self.rejection is not None:
            return [self._reject(self.rejection)]
        assert self.decision is not None
        self._move(step)
        answers = self._answer(step.action, self.decision.targets)
        rank = self.decision.load.endpoint.spec.rank
        if rank is not None and step.action is not Action.PICK_AT_TRAILERS:
            answers[0] += replies.data_parallel_rank(rank, in_body=step.action is Action.PICK_AT_BODY)
        if self._rules.decision_metadata:
            answers[0] += replies.decision_metadata(self.decision.reason, round(self.decision.match_ratio, 2))
        # The stream may stay open as long as the answer: nothing of the request's size stays with it.
        self._body, self._new_body = b"", None
        self.request = InferenceRequest(model=self.request.model[:KEPT_NAME])
        self._drop_headers()
        return answers

    def release_reply(self) -> None:
        """All replies are written: give back the memory of the replies and of the messages that they answer."""
        if self._held and not self._keeps_request:
            self._drop_body()

    def overdue(self) -> bytes:
        """The reply to a request that did not come in time."""
        return self._reject(timed_out("The request body did not arrive in time."))

    def hold_arriving(self, size: int) -> bool:
        """Take memory for ``size`` bytes of a message that is not complete. False if the budget has too little.

        Of the request's body nothing is left once it is answered; :meth:`release_reply` gives back what is taken then.
        """
        return self._hold(self.body_bytes + size if self._keeps_request else size)

    def hold_replies(self, size: int) -> bool:
        """Take memory for ``size`` bytes of replies that wait; a returned body has it already. False if there is too little.

        :meth:`release_reply` gives it back.
        """
        return self._hold(size)

    def overloaded(self) -> bytes:
        """The reply to a message for which there is no memory."""
        return self._reject(_OVERLOADED)

    def too_large(self) -> bytes:
        """The reply to a message that is longer than any body may be."""
        return self._reject(body_too_large(self._rules.max_body_bytes))

    def failed(self) -> bytes:
        """The reply after an internal error: 500. Only if the request is not answered yet."""
        return self._reject(_INTERNAL_ERROR)

    def finish(self, now: float) -> None:
        """The stream has ended. Safe to call more than once."""
        self.state = State.CLOSED
        self._pending = None
        self._drop_body()
        self._drop_headers()
        if self._in_flight and self.decision is not None:
            self._in_flight = False
            self._router.finished(self.decision, now)

    def _begin(self, message: ProcessingRequest) -> None:
        if message.observability_mode:
            self.state = State.SHADOWED
        elif message.HasField("protocol_config"):
            mode = message.protocol_config.request_body_mode
            self._request_mode = mode if mode in MODES else BUFFERED
            self._response_mode = message.protocol_config.response_body_mode

    def _move(self, step: Transition) -> None:
        rules = self._rules
        needs_response = (
            rules.observe_responses or rules.enable_conformance_headers or self._response_mode == FULL_DUPLEX_STREAMED
        )
        self.state = next_state(step, needs_response=needs_response)

    def _reject(self, rejection: Rejection) -> bytes:
        self.rejection = rejection
        self.state = State.CLOSED
        self._pending = None
        self._drop_body()
        reply = replies.reject(rejection, self._headers.get(":path", ""))
        self._drop_headers()
        return reply

    # ---------------------------------------------------------------- taking the request in

    def _take_headers(self, action: Action) -> Rejection | None:
        if action in _AT_HEADERS:
            return None
        mode = self._request_mode
        self._stream_ends_with_response = mode != FULL_DUPLEX_STREAMED or self._response_mode == FULL_DUPLEX_STREAMED
        length = headers.number(self._headers.get("content-length", ""))
        if length is None:
            return None
        if length > self._rules.max_body_bytes:
            return body_too_large(self._rules.max_body_bytes)
        more = length - self._held  # the message of the headers may have taken some
        if length >= LARGE_BODY and more > 0:
            if not self._budget.reserve(more):
                return _OVERLOADED
            self._held = length
        return None

    def _take_body(self, message: HttpBody, action: Action) -> Rejection | None:
        if action in _NOT_TAKEN:
            return None
        body = message.body  # each access copies the field
        self.body_bytes += len(body)
        if self.body_bytes > self._rules.max_body_bytes:
            return body_too_large(self._rules.max_body_bytes)
        if action is Action.PICK_AT_BODY:
            self._body = body
            # A body that is followed by trailers does not end the stream either.
            self._truncated = (
                self._request_mode == BUFFERED_PARTIAL and not message.end_of_stream and not is_whole(body)
            )
            # Short bodies are read on the event loop, one at a time, and take no budget.
            return _OVERLOADED if self.takes_long and not self._hold(len(body)) else None
        if not self._hold(self.body_bytes):
            return _OVERLOADED
        self._chunks.append(body)
        return None

    def _decoded(self) -> bytes | None:
        """The body without its compression; None if it is to be routed unread."""
        limit = decoded_limit(self.body_bytes, self._rules.max_body_bytes)
        if not self._hold(self.body_bytes + limit):
            return None
        text = decode(self._body, self._headers["content-encoding"], limit, whole=not self._truncated)
        self._hold_no_more(self.body_bytes + len(text or b""))
        return text

    def _hold_for_reading(self, body: bytes) -> Rejection | None:
        """Take the memory that reading a long body needs. Returns the rejection if the budget has too little."""
        if not self.takes_long:
            return None
        needed = memory_needed(body, self._rules.max_json_values) + self.body_bytes
        if body is not self._body:
            needed += len(body)
        if needed > self._budget.limit:
            return too_much_memory()
        return None if self._hold(needed) else _OVERLOADED

    def _hold(self, size: int) -> bool:
        """Hold ``size`` bytes of the budget in all. False if the budget has too little."""
        more = size - self._held
        if more > 0:
            if not self._budget.take(more):
                return False
            self._held = size
        return True

    def _hold_no_more(self, size: int) -> None:
        """Give back what is held beyond ``size`` bytes."""
        if self._held > size:
            self._budget.give(self._held - size)
            self._held = size

    def _hold_headers(self) -> bool:
        """Take memory for what is kept of the headers and for the hint. False if too little is left."""
        size = headers.memory(self._headers) + headers.memory(self._visible_headers) + len(self._hint or b"")
        more = size - self._headers_held
        if size <= HEADERS_FREELY or more <= 0:
            return True
        if not self._headers_budget.take(more):
            return False
        self._headers_held = size
        return True

    def _drop_headers(self) -> None:
        """Keep the request's id alone."""
        self._headers, self._visible_headers, self._hint = {"x-request-id": self.request_id}, NO_HEADERS, None
        if self._headers_held:
            self._headers_budget.give(self._headers_held)
            self._headers_held = 0

    def _drop_body(self) -> None:
        self._chunks.clear()
        self._body, self._new_body = b"", None
        if self._held:
            self._budget.give(self._held)
            self._held = 0

    # ---------------------------------------------------------------- reading the request

    def _read_body(self, body: bytes) -> Rejection | bytes | None:
        """Set ``request``; returns the new body if the model's name changes, or why the request is rejected."""
        request = self._parse_body(body)
        if isinstance(request, Rejection):
            return request
        self.request = request
        return self._resolve_model(body) if request.model else None

    def _parse_body(self, body: bytes) -> InferenceRequest | Rejection:
        known, limit = self._headers, self._rules.max_json_values
        path, content_type = known.get(":path", ""), known.get("content-type", "")
        if not self._truncated:
            return parse(path, content_type, body, max_values=limit)
        named = known.get(headers.MODEL_NAME, "")
        beginning = parse_beginning(path, content_type, body, model=named, max_values=limit)
        return beginning.cut_off(self.body_bytes, headers.number(known.get("content-length", "")))

    def _resolve_model(self, body: bytes) -> Rejection | bytes | None:
        """Look the model up: sets its criticality and the name that the engine gets. Returns as :meth:`_read_body`."""
        request = self.request
        asked = self._first(headers.MODEL_REWRITES) or request.model
        model = self._models.get(asked)
        if model is None:
            if self._rules.strict_models:
                return unknown_model(asked)
            name = asked
        else:
            name = model.draw(self._chance())
            self._criticality = model.criticality
        if self._truncated:  # half a body cannot be rewritten
            name = request.model
        if name == request.model:
            return None
        self.request = request.with_model(name)
        return replace_model(body, name)

    def _allowed(self) -> frozenset[str] | None:
        if self._rules.enable_conformance_headers and self._headers.get(headers.TEST_SELECTION):
            return subset.members(subset.split(self._headers[headers.TEST_SELECTION]))
        if self._hint is None or self._rules.disable_endpoint_subset_filter:
            return None
        return subset.hinted(self._hint)

    def _first(self, names: tuple[str, ...]) -> str:
        """The value of the first of these request headers that is present and not empty."""
        for name in names:
            value = self._headers.get(name)
            if value:
                return value
        return ""

    # ---------------------------------------------------------------- replies

    def _answer(self, action: Action, targets: str) -> list[bytes]:
        """The replies that name the endpoint."""
        known = self._headers
        consumed = tuple([name for name in headers.CONSUMED if name in known])
        if self._new_body is not None and self._compressed:
            consumed += ("content-encoding",)
        echo = self._rules.enable_conformance_headers
        new_body = self._new_body
        if action is Action.PICK_AT_BODY:
            if new_body is None:
                return [replies.destination_in_body(targets, remove=consumed, echo=echo)]
            return [replies.destination_and_body(targets, new_body, remove=consumed, echo=echo)]
        if action is Action.PICK_AT_TRAILERS:
            return [replies.destination_in_trailers(targets)]
        length = None if new_body is None else len(new_body)
        answers = [replies.destination_in_headers(targets, content_length=length, remove=consumed, echo=echo)]
        if action in _AT_HEADERS:
            return answers
        body = self._body if new_body is None else new_body
        trailers = action is Action.PICK_AND_RETURN_ALL
        if body or not trailers:  # an empty body before trailers came in no chunk, so none is returned
            answers += replies.streamed_request_body(body, end_of_stream=not trailers)
        if trailers:
            answers.append(replies.CONTINUE_REQUEST_TRAILERS)
        return answers

    def _acknowledge(self, action: Action, message: ProcessingRequest, now: float) -> list[bytes]:
        """The replies to a message that does not answer the request."""
        match action:
            case Action.ACKNOWLEDGE_HEADERS:
                return [replies.CONTINUE_REQUEST_HEADERS]
            case Action.ACKNOWLEDGE_BODY:
                return [replies.CONTINUE_REQUEST_BODY]
            case Action.RETURN_CHUNK:
                sent = message.request_body
                return [replies.returned_chunk(sent.body, end_of_stream=sent.end_of_stream)]
            case Action.ACKNOWLEDGE_TRAILERS:
                return [replies.CONTINUE_REQUEST_TRAILERS]
            case Action.READ_RESPONSE_HEADERS:
                self._drop_body()
                return [self._response_headers(message, now)]
            case Action.PASS_RESPONSE_BODY:
                body = message.response_body
                if self._looked_through > 0:
                    self._look_for_response_id(body.body)
                if self._response_mode == FULL_DUPLEX_STREAMED:
                    return [replies.streamed_response_body(body.body, end_of_stream=body.end_of_stream)]
                return [replies.CONTINUE_RESPONSE_BODY]
            case Action.ACKNOWLEDGE_RESPONSE_TRAILERS:
                return [replies.CONTINUE_RESPONSE_TRAILERS]
            case _:
                return []

    def _look_for_response_id(self, chunk: bytes) -> None:
        """Remember which endpoint keeps the response, once its id comes."""
        assert self.decision is not None
        found = response_id(chunk[: self._looked_through])
        self._looked_through = 0 if found else self._looked_through - len(chunk)
        if found:
            self._router.remember(self.decision, found)

    def _response_headers(self, message: ProcessingRequest, now: float) -> bytes:
        if self.decision is not None:  # without a decision it is Envoy's own reply
            self.response_status = headers.number(headers.read(message.response_headers.headers).get(":status", ""))
        namespace = message.metadata_context.filter_metadata
        fields = namespace[headers.LB_NAMESPACE].fields if headers.LB_NAMESPACE in namespace else {}
        if headers.SERVED in fields:
            self.served = fields[headers.SERVED].string_value
            if self._in_flight and self.decision is not None:
                self._router.served(self.decision, self.served, now)
        if self.decision is not None and self.response_status is not None:
            self._router.responded(self.decision, self.response_status, now)
        if self._rules.enable_conformance_headers:
            missing = "destination endpoint served" if fields else "envoy lb"
            return replies.served_in_headers(self.served or f"fail: missing {missing} metadata")
        return replies.CONTINUE_RESPONSE_HEADERS


_WITH_END = frozenset(("request_headers", "request_body"))
"""Messages whose flag ``end_of_stream`` matters."""
_AT_HEADERS = frozenset((Action.PICK_AT_HEADERS, Action.PICK_AND_LEAVE))
"""Actions that name the endpoint without a body."""
_KEEPING = frozenset((State.START, State.BODY))
"""States in which what has come of the request is kept."""
_NOT_TAKEN = frozenset((Action.ACKNOWLEDGE_BODY, Action.RETURN_CHUNK, Action.IGNORE))
"""Actions on a chunk that is not kept."""
