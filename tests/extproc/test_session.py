"""The session, message by message: what Envoy sends in each mode, and what it must never send."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from time import thread_time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.factories import routing_constants, session_rules
from warmroute.errors import ProtocolError
from warmroute.extproc import headers, replies, subset
from warmroute.extproc.budget import MemoryBudget
from warmroute.extproc.ext_proc_pb2 import (
    BUFFERED,
    BUFFERED_PARTIAL,
    FULL_DUPLEX_STREAMED,
    NONE,
    STREAMED,
    BodySendMode,
    HeaderAppendAction,
    HttpBody,
    HttpHeaders,
    HttpTrailers,
    Metadata,
    ProcessingRequest,
    ProcessingResponse,
    ProtocolConfiguration,
)
from warmroute.extproc.headers import MOST_READ, MOST_VISIBLE, trace_context_of
from warmroute.extproc.session import Session
from warmroute.extproc.transitions import UnexpectedMessageError
from warmroute.observability.recent_decisions import RecentDecisions
from warmroute.pool.endpoint import EndpointSpec, EngineState
from warmroute.pool.models import Criticality, Model, ModelTarget
from warmroute.pool.pool import Pool
from warmroute.request.inference import NO_PROMPT
from warmroute.routing.decision_listener import DecisionListener
from warmroute.routing.decision_record import DecisionRecord
from warmroute.routing.router import Router
from warmroute_lab.overhead.machine import resident_bytes

CHAT = json.dumps({"model": "m", "messages": [{"role": "user", "content": "Hello, world. " * 40}]}).encode()
TARGETS = {"10.0.0.0:8000", "10.0.0.1:8000", "[2001:db8::1]:8000"}


class Stream:
    """A session with a real router over three endpoints, and what it replied."""

    def __init__(
        self,
        models: Iterable[Model] = (),
        budget: MemoryBudget | None = None,
        headers_budget: MemoryBudget | None = None,
        listener: DecisionListener | None = None,
        strategy: str = "PREFIX_CACHE",
        **rules: Any,
    ) -> None:
        self.pool = Pool()
        self.budget = budget or MemoryBudget(1 << 30)
        self.headers_budget = headers_budget or MemoryBudget(1 << 30)
        self.request = NO_PROMPT
        """The request as it was routed, without its prompt, which may be large."""
        self.took_long = False
        addresses = ("10.0.0.0", "10.0.0.1", "2001:db8::1")
        self.pool.replace([EndpointSpec("default", a, a, 8000) for a in addresses], 0.0)
        self.pool.models.replace(models)
        self.router = Router(
            self.pool,
            routing_constants(routing_strategy=strategy),
            rng=random.Random(3),
            now=0.0,
            listeners=() if listener is None else (listener,),
        )
        self.session = Session(
            self.router,
            replace(session_rules(), **rules),
            models=self.pool.models,
            budget=self.budget,
            headers_budget=self.headers_budget,
            chance=random.Random(1).random,
        )

    def send(self, message: ProcessingRequest) -> list[ProcessingResponse]:
        session = self.session
        answers = session.receive(message, 0.0)
        if session.complete:
            self.took_long = session.takes_long
            session.parse()
            if session.rejection is None:
                session.pick(0.0)
            self.request = session.request._replace(parts=())
            answers += session.reply()
        if not session.closed:
            session.release_reply()
        return [ProcessingResponse.FromString(reply) for reply in answers]

    def headers(
        self,
        mode: BodySendMode | None = BUFFERED,
        *,
        eos: bool = False,
        response: BodySendMode = NONE,
        path: str = "/v1/chat/completions",
        subset: Any = None,
        **more: Any,
    ) -> list[ProcessingResponse]:
        message = ProcessingRequest(request_headers=HttpHeaders(end_of_stream=eos))
        if mode is not None:
            message.protocol_config.CopyFrom(ProtocolConfiguration(request_body_mode=mode, response_body_mode=response))
        pairs = {":path": path, ":method": "POST", "content-type": "application/json", "x-request-id": "r-1"}
        for key, value in (pairs | {k.replace("_", "-"): v for k, v in more.items()}).items():
            message.request_headers.headers.headers.add(key=key, raw_value=value.encode())
        if subset is not None:
            message.metadata_context.CopyFrom(hint(subset))
        return self.send(message)

    def body(self, data: bytes = CHAT, *, eos: bool = True) -> list[ProcessingResponse]:
        return self.send(ProcessingRequest(request_body=HttpBody(body=data, end_of_stream=eos)))

    def trailers(self) -> list[ProcessingResponse]:
        return self.send(ProcessingRequest(request_trailers=HttpTrailers()))


@pytest.mark.parametrize("mode", [NONE, BUFFERED, FULL_DUPLEX_STREAMED])
def test_reason_and_cached_share_are_metadata_if_asked_for(mode: BodySendMode) -> None:
    for wanted in (False, True):
        stream = Stream(decision_metadata=wanted)
        replies = stream.headers(mode)
        if mode != NONE:
            replies = stream.body()
        metadata: Any = replies[0].dynamic_metadata
        assert named_in_metadata(replies[0]) in metadata["envoy.lb"].values()
        assert ("warmroute" in metadata) == wanted
        if wanted:
            assert metadata["warmroute"]["reason"] == ("no-prompt" if mode == NONE else "cold")
            assert metadata["warmroute"]["cached_share"] == 0


@pytest.mark.parametrize("ranks", [1, 4])
@pytest.mark.parametrize("mode", [NONE, BUFFERED, FULL_DUPLEX_STREAMED])
def test_a_header_names_the_rank_behind_the_port(mode: BodySendMode, ranks: int) -> None:
    stream = Stream(models=[Model("m", (ModelTarget("renamed"),))])
    for endpoint in [*stream.pool.endpoints.values()]:
        stream.pool.set_ranks(endpoint, ranks, 0.0)
    replies = stream.headers(mode)
    if mode != NONE:
        replies = stream.body()
    kind = replies[0].WhichOneof("response")
    mutation = getattr(replies[0], kind or "").response.header_mutation
    sent = {option.header.key: option.header.raw_value.decode() for option in mutation.set_headers}
    assert destination(replies[0]) in TARGETS
    assert stream.session.decision is not None
    assert sent.get("x-data-parallel-rank") == (None if ranks == 1 else str(stream.session.decision.endpoint.spec.rank))


def test_a_custom_strategy_sees_headers_and_session_and_others_pay_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def choose(request, candidates):\n    return range(len(candidates))\n")
    sent: dict[str, Any] = {"x_session_id": "s7", "x_tier": "premium", "x_long": "x" * 5000}
    plain = Stream()
    plain.headers(**sent)
    plain.body()
    assert (dict(plain.request.headers), plain.request.session_id) == ({}, "")
    stream = Stream(strategy=f"{tmp_path / 'mine.py'}:choose")
    stream.headers(**sent)
    stream.body()
    seen = stream.request.headers
    assert (seen["x-tier"], stream.request.session_id) == ("premium", "s7")
    assert "x-long" not in seen
    with pytest.raises(TypeError):
        seen["x-tier"] = "other"  # type: ignore[index]


def test_a_custom_strategy_sees_a_bounded_number_of_headers(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def choose(request, candidates):\n    return range(len(candidates))\n")
    stream = Stream(strategy=f"{tmp_path / 'mine.py'}:choose")
    many: dict[str, Any] = {f"x{k}": "v" for k in range(500)}
    stream.headers(**many)
    stream.body()
    assert len(stream.request.headers) == MOST_VISIBLE


def test_only_a_valid_trace_context_is_passed_on() -> None:
    recent = RecentDecisions(10)
    valid = f"00-{5:032x}-{7:016x}-01"
    for traceparent in (valid, valid.upper() + "X", "00-" + "0" * 32 + valid[35:], "x" * 60, ""):
        stream = Stream(listener=recent)
        stream.headers(traceparent=traceparent)
        stream.body()
    assert [record.traceparent for record in recent.newest_first()] == ["", "", "", "", valid]


def test_the_trace_context_of_the_gateways_span_goes_before_that_of_the_client() -> None:
    recent = RecentDecisions(1)
    stream = Stream(listener=recent)
    stream.session.gateway_traceparent = ours = f"00-{5:032x}-{8:016x}-01"
    stream.headers(traceparent=f"00-{5:032x}-{7:016x}-01")
    stream.body()
    assert [record.traceparent for record in recent.newest_first()] == [ours]


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ((("user-agent", "x"), ("traceparent", f"00-{5:032x}-{7:016x}-01")), f"00-{5:032x}-{7:016x}-01"),
        ((("traceparent", "x" * 5000),), ""),
        ((("traceparent", b"00"),), ""),
        ((), ""),
        (None, ""),
    ],
)
def test_a_streams_metadata_may_have_a_trace_context(metadata: Any, expected: str) -> None:
    assert trace_context_of(metadata) == expected


def hint(value: Any) -> Metadata:
    metadata = Metadata()
    metadata.filter_metadata["envoy.lb.subset_hint"].update({"x-gateway-destination-endpoint-subset": value})
    return metadata


def named_in_metadata(reply: ProcessingResponse) -> str:
    metadata: Any = reply.dynamic_metadata
    return metadata["envoy.lb"]["x-gateway-destination-endpoint"]


def destination(reply: ProcessingResponse) -> str:
    """The endpoint that a reply names; header and metadata must agree, and only raw_value be set."""
    kind = reply.WhichOneof("response")
    assert kind in {"request_headers", "request_body"}
    mutation = getattr(reply, kind).response.header_mutation
    (option,) = [o for o in mutation.set_headers if o.header.key == "x-gateway-destination-endpoint"]
    assert not option.header.value
    assert option.append_action == HeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD
    named = option.header.raw_value.decode()
    assert named_in_metadata(reply) == named
    return named


def kinds(responses: list[ProcessingResponse]) -> list[str | None]:
    return [reply.WhichOneof("response") for reply in responses]


def rejection(responses: list[ProcessingResponse]) -> tuple[int, str, dict[str, Any]]:
    (reply,) = responses
    immediate = reply.immediate_response
    sent = {o.header.key: o.header.raw_value.decode() for o in immediate.headers.set_headers}
    assert sent["content-type"] == "application/json"
    assert sent["x-warmroute-dropped-reason"] == sent["x-llm-d-request-dropped-reason"]
    return immediate.status.code, sent["x-warmroute-dropped-reason"], json.loads(immediate.body)["error"] | sent


# ------------------------------------------------------------------------------------------------ modes


@pytest.mark.parametrize("mode", [BUFFERED, BUFFERED_PARTIAL, None])
def test_buffered(mode: BodySendMode | None) -> None:
    stream = Stream()
    (first,) = stream.headers(mode)
    assert first.SerializeToString() == replies.CONTINUE_REQUEST_HEADERS
    (second,) = stream.body()
    assert second.WhichOneof("response") == "request_body"
    assert destination(second) in TARGETS
    assert not second.request_body.response.HasField("body_mutation")
    assert stream.session.closed


def test_buffered_with_trailers_to_come() -> None:
    stream = Stream(observe_responses=True)
    stream.headers()
    (reply,) = stream.body(eos=False)
    assert destination(reply) in TARGETS
    assert kinds(stream.trailers()) == ["request_trailers"]


def test_partial_body_is_cut_json() -> None:
    stream = Stream()
    stream.headers(BUFFERED_PARTIAL)
    (reply,) = stream.body(CHAT[:300], eos=False)
    assert destination(reply) in TARGETS
    assert stream.request.model == "m"
    assert 200 < stream.request.prompt_bytes < 300


def test_a_whole_body_that_is_malformed_is_not_cut_off() -> None:
    stream = Stream()
    stream.headers(BUFFERED_PARTIAL)
    assert rejection(stream.body(CHAT[:300], eos=True))[0] == 400


@pytest.mark.parametrize("mode", [NONE, BUFFERED, FULL_DUPLEX_STREAMED])
def test_headers_for_the_picker_go_no_further_in_any_mode(mode: BodySendMode) -> None:
    stream = Stream()
    replies = stream.headers(mode, x_gateway_inference_objective="batch")
    if mode != NONE:
        replies = stream.body()
    part = replies[0].request_body if mode == BUFFERED else replies[0].request_headers
    assert list(part.response.header_mutation.remove_headers) == ["x-gateway-inference-objective"]


def test_a_rejection_is_known_and_no_decision() -> None:
    stream = Stream(observe_responses=True)
    stream.pool.replace([], 0.0)
    stream.headers()
    status, _, _ = rejection(stream.body())
    session = stream.session
    assert (session.answered, session.decision) == (True, None)
    assert session.rejection is not None
    assert session.rejection.status == status == 503
    session.finish(1.0)
    late = Stream().session
    late.overdue()
    assert late.rejection is not None
    assert late.rejection.status == 408


def test_a_body_that_was_cut_off_goes_on_as_it_was_sent() -> None:
    """The model of half a body cannot be replaced."""
    stream = Stream(models=[Model("m", (ModelTarget("tuned"),))])
    stream.headers(BUFFERED_PARTIAL)
    (reply,) = stream.body(CHAT[:300], eos=False)
    assert destination(reply) in TARGETS
    assert not reply.request_body.response.HasField("body_mutation")
    assert stream.request.model == "m"


def test_a_whole_body_with_trailers_to_come_is_not_cut_off() -> None:
    stream = Stream(models=[Model("m", (ModelTarget("tuned"),))])
    stream.headers(BUFFERED_PARTIAL)
    (reply,) = stream.body(CHAT, eos=False)
    assert json.loads(reply.request_body.response.body_mutation.body)["model"] == "tuned"
    assert not stream.request.partial
    stream = Stream()
    stream.headers(BUFFERED_PARTIAL)
    assert rejection(stream.body(b'{"messages": []}\n', eos=False))[:2] == (400, "no-model")


def test_a_cut_body_that_names_its_model_late_has_the_one_of_the_header() -> None:
    cut = b'{"messages": [{"role": "user", "content": "Once upon a ti'
    for model, strict in (("lora-a", False), ("lora-b", True)):
        stream = Stream(models=[Model("lora-a")], strict_models=strict)
        stream.headers(BUFFERED_PARTIAL, x_gateway_model_name=model)
        answers = stream.body(cut, eos=False)
        assert stream.request.model == model
        if strict:
            assert rejection(answers)[:2] == (404, "unknown-model")
        else:
            assert stream.request.seed.endswith(b"\xfflora-a")
            assert not answers[0].request_body.response.HasField("body_mutation")
    stream = Stream(strict_models=True)
    stream.headers(BUFFERED_PARTIAL, path="/v1/files", x_gateway_model_name="m")
    assert destination(stream.body(b"half a fi", eos=False)[0]) in TARGETS


def test_a_body_that_is_cut_off_weighs_as_much_as_all_of_it() -> None:
    whole = json.dumps({"model": "m", "messages": [{"role": "user", "content": "word " * 10_000}]}).encode()
    for length, partial in ((str(len(whole)), False), ("", True), ("7", True)):
        stream = Stream()
        stream.headers(BUFFERED_PARTIAL, content_length=length)
        stream.body(whole[:20_000], eos=False)
        request = stream.request
        assert request.partial == partial
        expected = len(whole) if not partial else 20_000
        assert request.prompt_bytes == pytest.approx(expected, rel=0.01)


def test_token_ids_that_are_cut_off_count_in_full() -> None:
    whole = json.dumps({"model": "m", "prompt": [12345] * 10_000}).encode()
    stream = Stream()
    stream.headers(BUFFERED_PARTIAL, path="/v1/completions", content_length=str(len(whole)))
    stream.body(whole[:20_000], eos=False)
    assert stream.request.tokens == pytest.approx(10_000, rel=0.01)


def test_strategies_are_told_whom_a_request_counts_for() -> None:
    stream = Stream()
    stream.headers(x_gateway_inference_fairness_id="team-a")
    stream.body()
    assert stream.request.fairness_id == "team-a"


@pytest.mark.parametrize("mode", [NONE, STREAMED, BUFFERED, BUFFERED_PARTIAL, FULL_DUPLEX_STREAMED])
def test_without_a_body_the_headers_are_answered(mode: BodySendMode) -> None:
    stream = Stream()
    (reply,) = stream.headers(mode, eos=True)
    assert reply.WhichOneof("response") == "request_headers"
    assert destination(reply) in TARGETS
    assert stream.session.closed


@pytest.mark.parametrize("mode", [BUFFERED, BUFFERED_PARTIAL])
def test_trailers_without_a_body_are_answered_with_the_endpoint(mode: BodySendMode) -> None:
    stream = Stream()
    stream.headers(mode)
    (reply,) = stream.trailers()
    assert reply.WhichOneof("response") == "request_trailers"
    assert not reply.request_trailers.HasField("header_mutation")
    assert named_in_metadata(reply) in TARGETS
    assert stream.session.closed
    stream = Stream()
    stream.pool.replace([], 0.0)
    stream.headers(mode)
    assert rejection(stream.trailers())[:2] == (503, "no-endpoints")


def test_mode_none() -> None:
    stream = Stream()
    (reply,) = stream.headers(NONE)
    assert destination(reply) in TARGETS
    assert stream.session.closed


def test_streamed_acknowledges_each_chunk_and_closes_after_the_last() -> None:
    stream = Stream()
    (reply,) = stream.headers(STREAMED)
    assert destination(reply) in TARGETS
    assert not stream.session.closed
    assert [r.SerializeToString() for r in stream.body(b"x" * 10, eos=False)] == [replies.CONTINUE_REQUEST_BODY]
    assert [r.SerializeToString() for r in stream.body(b"", eos=True)] == [replies.CONTINUE_REQUEST_BODY]
    assert stream.session.closed


@pytest.mark.parametrize("size", [0, 1, 61_999, 62_000, 62_001, 400_000])
@pytest.mark.parametrize("trailers", [False, True])
def test_full_duplex_holds_everything_and_gives_it_back(size: int, trailers: bool) -> None:
    body = b"\x00" * size
    stream = Stream()
    assert stream.headers(FULL_DUPLEX_STREAMED, content_type="application/octet-stream") == []
    pieces = [body[k : k + 32_768] for k in range(0, size, 32_768)]
    for piece in pieces:
        assert stream.body(piece, eos=False) == []
    answers = stream.trailers() if trailers else stream.body(b"", eos=True)
    assert answers[0].WhichOneof("response") == "request_headers"
    assert destination(answers[0]) in TARGETS
    chunks = [a.request_body.response.body_mutation.streamed_response for a in answers if a.HasField("request_body")]
    assert b"".join(chunk.body for chunk in chunks) == body
    assert all(len(chunk.body) <= replies.CHUNK_BYTES for chunk in chunks)
    if not trailers:
        assert [chunk.end_of_stream for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    else:  # Envoy knows nothing of a body that is empty
        assert [chunk.end_of_stream for chunk in chunks] == [False] * -(-size // replies.CHUNK_BYTES)
    assert kinds(answers)[-1] == ("request_trailers" if trailers else "request_body")
    assert stream.session.closed


def test_full_duplex_ignores_a_second_end_of_stream() -> None:
    stream = Stream()
    stream.headers(FULL_DUPLEX_STREAMED, response=FULL_DUPLEX_STREAMED)
    assert len(stream.body()) == 2
    assert stream.body(b"", eos=True) == []
    assert not stream.session.closed


def test_full_duplex_responses_are_echoed_and_never_closed_early() -> None:
    stream = Stream()
    stream.headers(FULL_DUPLEX_STREAMED, response=FULL_DUPLEX_STREAMED)
    stream.body()
    assert not stream.session.closed
    assert kinds(stream.send(ProcessingRequest(response_headers=HttpHeaders()))) == ["response_headers"]
    for data, eos in ((b"data: 1\n\n", False), (b"", True)):
        (reply,) = stream.send(ProcessingRequest(response_body=HttpBody(body=data, end_of_stream=eos)))
        chunk = reply.response_body.response.body_mutation.streamed_response
        assert (chunk.body, chunk.end_of_stream) == (data, eos)
        message = ProcessingRequest(response_body=HttpBody(body=data, end_of_stream=eos)).SerializeToString()
        assert stream.session.pass_chunk(message) == reply.SerializeToString()
    assert kinds(stream.send(ProcessingRequest(response_trailers=HttpTrailers()))) == ["response_trailers"]


# ------------------------------------------------------------------------------------------------ contents


def test_a_model_is_renamed_in_place() -> None:
    body = b'{ "messages": [{"role": "user", "content": "\\u00e9 model"}], "model" : "m", "n": 1.50 }'
    for mode in (BUFFERED, FULL_DUPLEX_STREAMED):
        stream = Stream(models=[Model("m", (ModelTarget("tuned-v2"),))])
        stream.headers(mode, content_length=str(len(body)))
        answers = stream.body(body)
        expected = body.replace(b'"m"', b'"tuned-v2"')
        common = getattr(answers[0], kinds(answers)[0] or "").response
        sent = {o.header.key: o.header.raw_value.decode() for o in common.header_mutation.set_headers}
        assert sent["content-length"] == str(len(expected))
        mutation = answers[-1].request_body.response.body_mutation
        assert (mutation.body or mutation.streamed_response.body) == expected
        assert stream.request.model == "tuned-v2"


def test_unknown_models_pass_unless_strict() -> None:
    for strict in (False, True):
        stream = Stream(models=[Model("other")], strict_models=strict)
        stream.headers()
        answers = stream.body()
        if strict:
            status, reason, error = rejection(answers)
            assert (status, reason, error["code"], error["param"]) == (404, "unknown-model", 404, "model")
        else:
            assert destination(answers[0]) in TARGETS


def test_a_header_names_the_model_to_go_on_with_and_is_consumed() -> None:
    for header in ("x_gateway_model_name_rewrite", "x_llm_d_model_name_rewrite"):
        stream = Stream(models=[Model("alias", (ModelTarget("tuned"),), Criticality.CRITICAL)])
        named: dict[str, Any] = {header: "alias"}
        stream.headers(**named)
        (answer,) = stream.body()
        common = answer.request_body.response
        assert json.loads(common.body_mutation.body)["model"] == "tuned"
        assert header.replace("_", "-") in common.header_mutation.remove_headers
        stream = Stream()
        stream.headers(**(named | {header: "plain"}))
        assert json.loads(stream.body()[0].request_body.response.body_mutation.body)["model"] == "plain"


SHEDDABLE, STANDARD, CRITICAL = Criticality.SHEDDABLE, Criticality.STANDARD, Criticality.CRITICAL


@pytest.mark.parametrize(
    ("model", "objective", "body_priority", "refused_up_to"),
    [
        (None, "", 0, STANDARD),
        (None, "", -5, STANDARD),  # the client's own field decides nothing
        (SHEDDABLE, "", 9, SHEDDABLE),
        (STANDARD, "", 0, STANDARD),
        (CRITICAL, "", -1, CRITICAL),
        (CRITICAL, "batch", 0, SHEDDABLE),
        (SHEDDABLE, "chat", 0, CRITICAL),
        (SHEDDABLE, "plain", 0, STANDARD),
        (SHEDDABLE, "unheard-of", 0, SHEDDABLE),
    ],
)
@pytest.mark.parametrize("shed_up_to", [None, SHEDDABLE, STANDARD])
def test_who_is_refused_by_a_saturated_pool(
    model: Criticality | None,
    objective: str,
    body_priority: int,
    refused_up_to: Criticality,
    shed_up_to: Criticality | None,
) -> None:
    document = {"model": "m", "messages": [{}], "priority": body_priority}
    for busy in (False, True):
        stream = Stream(models=[Model("m", criticality=model)] if model is not None else [], shed_up_to=shed_up_to)
        stream.pool.models.replace_objectives({"batch": -1, "plain": 0, "chat": 7})
        for endpoint in stream.pool.endpoints.values():
            stream.pool.observed(endpoint, EngineState(0.0, running=9, waiting=9 * busy, kv_usage=0.5), 0.0)
        named: dict[str, Any] = {"x_gateway_inference_objective": objective} if objective else {}
        stream.headers(**named)
        answers = stream.body(json.dumps(document).encode())
        if busy and shed_up_to is not None and refused_up_to <= shed_up_to:
            status, reason, error = rejection(answers)
            assert (status, reason, error["retry-after"]) == (429, "saturated", "1")
        else:
            assert destination(answers[0]) in TARGETS


@pytest.mark.parametrize("mode", [BUFFERED, FULL_DUPLEX_STREAMED])
def test_malformed_bodies_get_400(mode: BodySendMode) -> None:
    stream = Stream()
    stream.headers(mode)
    status, _, error = rejection(stream.body(b'{"model": '))
    assert (status, error["type"]) == (400, "invalid_request_error")
    assert stream.session.closed


@pytest.mark.parametrize("mode", [BUFFERED, FULL_DUPLEX_STREAMED])
def test_bodies_over_the_limit_get_413(mode: BodySendMode) -> None:
    stream = Stream(max_body_bytes=100)
    stream.headers(mode)
    assert rejection(stream.body(b"x" * 101))[:2] == (413, "body-too-large")
    stream = Stream(max_body_bytes=100)
    assert rejection(stream.headers(mode, content_length="101"))[:2] == (413, "body-too-large")


@pytest.mark.parametrize("length", ["-1", "", "x", "9" * 5000, "\u0665"])
def test_a_senseless_content_length_is_ignored(length: str) -> None:
    stream = Stream()
    stream.headers(content_length=length)
    assert destination(stream.body()[0]) in TARGETS


def test_no_endpoint_gets_503_with_retry_after() -> None:
    stream = Stream()
    stream.pool.replace([], 0.0)
    stream.headers()
    status, reason, sent = rejection(stream.body())
    assert (status, reason, sent["retry-after"]) == (503, "no-endpoints", "1")


@pytest.mark.parametrize(
    ("value", "allowed"),
    [
        (["10.0.0.1:8000"], {"10.0.0.1:8000"}),
        (["10.0.0.1"], {"10.0.0.1:8000"}),
        ("10.0.0.0:8000, 10.0.0.1:8000", {"10.0.0.0:8000", "10.0.0.1:8000"}),
        (["[2001:db8::1]:8000"], {"[2001:db8::1]:8000"}),
        (["2001:0db8:0::1"], {"[2001:db8::1]:8000"}),
        (["10.0.0.1:9999"], set()),
        ([], set()),
        ("", set()),
        (["192.0.2.1:8000", "not an address"], set()),
        (["10.0.0.1:http", "[2001:db8::1]:http", "10.0.0.0:-1", "10.0.0.0:" + "8" * 5000, "10.0.0.0:\u0668"], set()),
        (["10.0.0.1:", "[2001:db8::1]"], {"10.0.0.1:8000", "[2001:db8::1]:8000"}),
    ],
)
def test_the_subset_hint(value: object, allowed: set[str]) -> None:
    seen = set()
    for _ in range(6):
        stream = Stream()
        stream.headers(subset=value)
        answers = stream.body()
        if not allowed:
            assert rejection(answers)[:2] == (503, "empty-subset")
            continue
        seen.add(destination(answers[0]))
    assert seen <= allowed


@pytest.mark.parametrize("form", [list, ",".join])
def test_a_subset_hint_is_bounded_and_read_once(form: Callable[[list[str]], object]) -> None:
    filler = [f"192.0.2.{n}:{port}" for n in range(256) for port in range(8000, 8004)]
    assert len(filler) == subset.MAX_ENTRIES
    for entries, allowed in (
        (["10.0.0.1:8000", *filler], True),
        ([*filler, "10.0.0.1:8000"], False),
        (["10.0.0.1:8000", "9" * 100_000], True),
        (["10.0.0.1" + " " * 100 + ":8000"], False),
    ):
        subset.read.cache_clear()
        for _ in range(3):
            stream = Stream()
            stream.headers(subset=form(entries))
            answers = stream.body()
            if allowed:
                assert destination(answers[0]) == "10.0.0.1:8000"
            else:
                assert rejection(answers)[:2] == (503, "empty-subset")
        assert subset.read.cache_info().misses == 1


def test_no_subset_hint_holds_the_event_loop() -> None:
    seconds = []
    for n in range(3):
        sent = subset.hint_of(hint([f"[2001:db8:{n:x}:{k:x}::1]:8000" for k in range(4096)]))
        assert sent is not None
        began = thread_time()
        assert len(subset.hinted(sent)) == subset.MAX_ENTRIES
        seconds.append(thread_time() - began)
    assert min(seconds) < 0.03


def test_the_subset_hint_can_be_switched_off() -> None:
    stream = Stream(disable_endpoint_subset_filter=True)
    stream.headers(subset=[])
    assert destination(stream.body()[0]) in TARGETS


def test_the_pickers_own_headers_do_not_reach_the_engine() -> None:
    stream = Stream()
    stream.headers(x_gateway_inference_objective="gold")
    (reply,) = stream.body()
    assert list(reply.request_body.response.header_mutation.remove_headers) == ["x-gateway-inference-objective"]


def test_without_a_selection_the_conformance_headers_change_no_choice() -> None:
    stream = Stream(enable_conformance_headers=True)
    stream.headers(subset=["10.0.0.1:8000"])
    (reply,) = stream.body()
    assert destination(reply) == "10.0.0.1:8000"


def test_conformance_headers() -> None:
    stream = Stream(enable_conformance_headers=True)
    (reply,) = stream.headers(eos=True, test_epp_endpoint_selection="10.0.0.1")
    assert destination(reply) == "10.0.0.1:8000"
    assert not stream.session.closed
    for namespace, served in (
        (None, "fail: missing envoy lb metadata"),
        ({"other": "x"}, "fail: missing destination endpoint served metadata"),
        ({"x-gateway-destination-endpoint-served": "10.0.0.1:8000"}, "10.0.0.1:8000"),
    ):
        message = ProcessingRequest(response_headers=HttpHeaders())
        if namespace:
            message.metadata_context.filter_metadata["envoy.lb"].update(namespace)
        (reply,) = stream.send(message)
        (option,) = reply.response_headers.response.header_mutation.set_headers
        assert (option.header.key, option.header.raw_value.decode()) == ("x-conformance-test-served-endpoint", served)
    ignored = {destination(Stream().headers(eos=True, test_epp_endpoint_selection="192.0.2.1")[0]) for _ in range(3)}
    assert ignored <= TARGETS


# ------------------------------------------------------------------------------------------------ responses, ends


def test_observed_requests_are_counted_until_they_end() -> None:
    stream = Stream(observe_responses=True)
    stream.headers()
    stream.body()
    assert stream.session.decision is not None
    load = stream.session.decision.load
    assert (stream.session.closed, load.open_responses) == (False, 1)
    message = ProcessingRequest(response_headers=HttpHeaders())
    message.response_headers.headers.headers.add(key=":status", raw_value=b"500")
    stream.send(message)
    assert stream.session.response_status == 500
    stream.session.finish(1.0)
    stream.session.finish(2.0)
    assert load.open_responses == 0


@pytest.mark.parametrize(
    ("request_mode", "response_mode", "observe", "counted"),
    [
        (BUFFERED, NONE, False, 0),
        (BUFFERED, FULL_DUPLEX_STREAMED, False, 0),
        (BUFFERED, NONE, True, 1),
        (FULL_DUPLEX_STREAMED, FULL_DUPLEX_STREAMED, True, 1),
        (FULL_DUPLEX_STREAMED, NONE, True, 0),  # Envoy ends the stream with the request's body
    ],
)
def test_requests_in_flight_are_counted_only_if_asked_for_and_if_the_stream_shows_their_end(
    request_mode: BodySendMode, response_mode: BodySendMode, observe: bool, counted: int
) -> None:
    stream = Stream(observe_responses=observe)
    stream.headers(request_mode, response=response_mode)
    stream.body()
    assert stream.session.decision is not None
    assert stream.session.decision.load.open_responses == counted


def test_a_preview_reads_objective_and_session_as_a_pick_does(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def choose(request, candidates):\n    return range(len(candidates))\n")
    stream = Stream(strategy=f"{tmp_path / 'mine.py'}:choose", shed_up_to=Criticality.SHEDDABLE)
    stream.pool.models.replace_objectives({"batch": -1})
    stream.headers(x_session_id="s7", x_gateway_inference_objective="batch")
    stream.session.receive(ProcessingRequest(request_body=HttpBody(body=CHAT, end_of_stream=True)), 0.0)
    stream.session.parse()
    assert isinstance(stream.session.preview(0.0), DecisionRecord)
    assert stream.session.request.session_id == "s7"
    assert stream.session.request.sheddable


def test_an_answer_of_the_proxys_own_is_no_response_of_an_engine() -> None:
    stream = Stream()
    stream.headers()
    message = ProcessingRequest(response_headers=HttpHeaders())
    message.response_headers.headers.headers.add(key=":status", raw_value=b"413")
    stream.send(message)
    assert stream.session.response_status is None


def test_messages_that_are_nothing_to_us() -> None:
    stream = Stream()
    assert stream.send(ProcessingRequest()) == []
    assert stream.headers() != []


def test_a_shadow_run_is_not_answered() -> None:
    stream = Stream()
    for message in (ProcessingRequest(request_headers=HttpHeaders()), ProcessingRequest(request_body=HttpBody())):
        message.observability_mode = True
        assert stream.send(message) == []
    assert not stream.session.answered
    assert not stream.session.awaits_client


def test_illegal_orders_are_named() -> None:
    stream = Stream()
    stream.headers()
    with pytest.raises(UnexpectedMessageError, match="request_headers in state BODY"):
        stream.headers()
    stream = Stream()
    with pytest.raises(UnexpectedMessageError, match="request_trailers in state START"):
        stream.trailers()
    stream = Stream()
    stream.headers(eos=True)
    with pytest.raises(UnexpectedMessageError, match="request_body in state CLOSED"):
        stream.body()


@pytest.mark.parametrize("mode", [BUFFERED, BUFFERED_PARTIAL, FULL_DUPLEX_STREAMED, STREAMED])
def test_a_request_that_has_not_ended_has_a_deadline(mode: BodySendMode) -> None:
    stream = Stream(observe_responses=True)
    assert stream.session.awaits_client
    stream.headers(mode)
    assert stream.session.awaits_client
    assert rejection([ProcessingResponse.FromString(stream.session.overdue())])[:2] == (408, "body-timeout")
    for end in (Stream.body, Stream.trailers):
        stream = Stream(observe_responses=True)
        stream.headers(mode)
        end(stream)
        assert not stream.session.awaits_client
    stream = Stream(observe_responses=True)
    stream.headers(mode)
    stream.send(ProcessingRequest(response_headers=HttpHeaders()))
    assert not stream.session.awaits_client, "it is answered, and an upgraded connection never ends its body"


def test_no_deadline_without_a_body_to_come() -> None:
    for mode, eos in ((NONE, False), (BUFFERED, True)):
        stream = Stream(observe_responses=True)
        stream.headers(mode, eos=eos)
        assert not stream.session.awaits_client


# ------------------------------------------------------------------------------------------------ bounds


@pytest.mark.parametrize("mode", [BUFFERED, BUFFERED_PARTIAL, FULL_DUPLEX_STREAMED])
def test_a_body_as_long_as_the_limit_passes(mode: BodySendMode) -> None:
    for over in (0, 1):
        stream = Stream(max_body_bytes=len(CHAT) - over)
        answers = stream.headers(mode, content_length=str(len(CHAT)))
        assert kinds(answers)[:1] == (["immediate_response"] if over else kinds(Stream().headers(mode)))
        stream = Stream(max_body_bytes=len(CHAT) - over)
        stream.headers(mode)
        answers = stream.body()
        assert answers[0].HasField("immediate_response") == bool(over)


def test_of_duplicate_headers_the_last_counts() -> None:
    for names, expected in ((("a", "b"), "b"), (("b", "a"), "a"), (("a", "x" * 5000), "m")):
        stream = Stream()
        message = ProcessingRequest(request_headers=HttpHeaders())
        message.protocol_config.request_body_mode = BUFFERED
        for key, value in ((":path", "/v1/chat/completions"), *(("x-gateway-model-name-rewrite", n) for n in names)):
            message.request_headers.headers.headers.add(key=key, raw_value=value.encode())
        stream.send(message)
        stream.body()
        assert stream.request.model == expected


def test_headers_beyond_the_first_thousand_are_not_looked_at() -> None:
    for before, expected in ((MOST_READ - 2, "other"), (MOST_READ - 1, "m")):
        stream = Stream()
        message = ProcessingRequest(request_headers=HttpHeaders())
        fields = [(":path", "/v1/chat/completions"), *[("", "")] * before, ("x-gateway-model-name-rewrite", "other")]
        for key, value in fields:
            message.request_headers.headers.headers.add(key=key, raw_value=value.encode())
        stream.send(message)
        stream.body()
        assert stream.request.model == expected


@pytest.mark.parametrize("mode", [BUFFERED, FULL_DUPLEX_STREAMED])
def test_a_short_body_of_many_lists_is_not_read_on_the_event_loop(mode: BodySendMode) -> None:
    budget = MemoryBudget(1 << 30)
    for tool, long in (("[" * 240 + "]" * 240, True), ('"' + "x" * 478 + '"', False)):
        body = b'{"model":"m","messages":[{"role":"user","content":"a"}],"tools":[%b1]}' % (f"{tool},".encode() * 200)
        stream = Stream(budget=budget)
        stream.headers(mode)
        halves = (body[:50_000], body[50_000:]) if mode == FULL_DUPLEX_STREAMED else (body,)
        for half in halves[:-1]:
            stream.body(half, eos=False)
        assert destination(stream.body(halves[-1])[0]) in TARGETS
        assert stream.took_long == long
        stream.session.finish(1.0)
        assert budget.used == 0


def test_a_request_id_is_short_and_printable() -> None:
    for sent, kept in (
        ("r-1", "r-1"),
        ("x" * 30_000, "x" * 128),
        ("a\x1b[31m\nb", r"a\x1b[31m\nb"),
        ("a\x9b31m\u202eb\u2028c\u2066", r"a\x9b31m\u202eb\u2028c\u2066"),
        ("é東", "é東"),
    ):
        stream = Stream()
        stream.headers(x_request_id=sent)
        assert stream.session.request_id == kept


@given(st.text(), st.integers(0, 50))
def test_what_is_printable_is_bounded(text: str, length: int) -> None:
    kept = headers.printable(text, length)
    assert len(kept) <= length
    assert kept.isprintable()
    if text.isprintable() and len(text) <= length:
        assert kept == text


EMOJI = "\U0001f600"


@pytest.mark.parametrize("kept", ["x_session_id", "x_gateway_model_name_rewrite"])
@pytest.mark.parametrize("width", [1, headers.WIDTH])
def test_a_value_takes_the_same_memory_whatever_its_characters(kept: str, width: int) -> None:
    longest = (headers.MAX_VALUE if kept == "x_session_id" else headers.MAX_NAME) // width
    first = EMOJI if width > 1 else "x"
    for more, expected in ((0, True), (1, False)):
        sent: dict[str, Any] = {kept: first + "x" * (longest - 1 + more)}
        stream = Stream(strict_models=True)
        stream.headers(**sent)
        assert (headers.memory(stream.session._headers) > headers.MAX_NAME) == expected


def heavy() -> dict[str, Any]:
    """Headers that take as much memory as the picker keeps for one request."""
    names = ("content_encoding", "traceparent", "x_session_id", *headers.CONSUMED, "x_gateway_model_name")
    return dict.fromkeys(names, "x" * 4096) | {"path": "/v1/completions?" + "x" * 4000}


def test_headers_of_requests_that_do_not_end_have_one_bound() -> None:
    budget = MemoryBudget(100_000)
    streams = [Stream(headers_budget=budget) for _ in range(100)]
    answers = [stream.headers(**heavy()) for stream in streams]
    assert rejection(answers[-1])[:2] == (503, "overloaded")
    assert 90_000 < budget.used <= 100_000
    small = Stream(headers_budget=budget)
    small.headers(x_session_id="s7")
    assert destination(small.body()[0]) in TARGETS
    for stream in streams:
        stream.session.finish(1.0)
    assert budget.used == 0


def test_a_hint_counts_as_headers_and_does_not_hold_its_message() -> None:
    budget = MemoryBudget(100_000)
    stream = Stream(headers_budget=budget)
    stream.headers(subset=["10.0.0.1:8000", "9" * 50_000])
    assert 50_000 < budget.used < 52_000
    assert destination(stream.body()[0]) == "10.0.0.1:8000"
    assert budget.used == 0
    assert rejection(Stream(headers_budget=budget).headers(subset=["9" * 100_000]))[:2] == (503, "overloaded")


@pytest.mark.parametrize("mode", [BUFFERED, FULL_DUPLEX_STREAMED])
def test_an_answered_stream_keeps_no_headers_but_its_id(mode: BodySendMode, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def choose(request, candidates):\n    return range(len(candidates))\n")
    budget = MemoryBudget(100_000)
    stream = Stream(
        headers_budget=budget, strategy=f"{tmp_path / 'mine.py'}:choose", observe_responses=True, strict_models=False
    )
    stream.headers(mode, response=mode, x_session_id="s7" * 1000, x_request_id="r-7")
    assert budget.used > 4000
    stream.body(json.dumps({"model": "m" * 1024, "messages": [{"role": "user", "content": "x"}]}).encode())
    assert budget.used == 0
    assert stream.request.session_id == "s7" * 1000
    session = stream.session
    assert (session.request_id, session.request.headers, session._hint) == ("r-7", {}, None)
    assert headers.memory(session._headers) + len(session.request.model) + len(session.request.seed) < 1000


def large(kilobytes: int) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * kilobytes * 1024}]}).encode()


def test_chunks_beyond_the_memory_for_bodies_get_503_and_take_nothing() -> None:
    budget = MemoryBudget(300_000)
    first, second = Stream(budget=budget), Stream(budget=budget)
    for stream in (first, second):
        stream.headers(FULL_DUPLEX_STREAMED)
    first.body(b"x" * 200_000, eos=False)
    second.body(b"x" * 100_000, eos=False)
    assert budget.used == 300_000
    status, reason, sent = rejection(second.body(b"x", eos=False))
    assert (status, reason, sent["retry-after"]) == (503, "overloaded", "1")
    assert budget.used == 200_000
    first.session.finish(1.0)
    assert budget.used == 0


def test_a_returned_body_counts_until_it_is_written() -> None:
    budget = MemoryBudget(1 << 20)
    stream = Stream(budget=budget, observe_responses=True)
    stream.headers(FULL_DUPLEX_STREAMED)
    body = ProcessingRequest(request_body=HttpBody(body=CHAT, end_of_stream=True))
    stream.session.receive(body, 0.0)
    stream.session.parse()
    stream.session.pick(0.0)
    stream.session.reply()
    assert budget.used == len(CHAT)
    stream.session.release_reply()
    assert (stream.session.closed, budget.used) == (False, 0)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's figures of resident memory")
def test_a_stream_that_stays_open_after_its_answer_keeps_neither_prompt_nor_message() -> None:
    size, number = 8 << 20, 24
    before = resident_bytes(os.getpid())
    streams = [Stream(observe_responses=True) for _ in range(number)]
    for stream in streams:
        stream.headers()
        message = ProcessingRequest(request_body=HttpBody(body=large(size >> 10), end_of_stream=True))
        message.metadata_context.CopyFrom(hint("10.0.0.0:8000"))
        assert destination(stream.send(message)[0]) == "10.0.0.0:8000"
        del message
    assert not any(stream.session.closed for stream in streams)
    assert resident_bytes(os.getpid()) - before < size * number / 2


def test_a_chunk_of_the_response_takes_its_own_size_of_the_memory_and_gives_it_back() -> None:
    budget = MemoryBudget(1 << 30)
    stream = Stream(budget=budget)
    stream.headers(FULL_DUPLEX_STREAMED, response=FULL_DUPLEX_STREAMED)
    stream.body(large(1024))
    assert budget.used == 0
    assert stream.session.hold_arriving(4000)
    assert budget.used == 4000
    stream.session.release_reply()
    assert (stream.session.closed, budget.used) == (False, 0)


def test_memory_of_headers_that_arrive_in_parts_counts_among_what_their_body_announces() -> None:
    budget = MemoryBudget(8 << 20)
    stream = Stream(budget=budget)
    assert stream.session.hold_arriving(9000)
    stream.headers(content_length=str(2 << 20))
    assert budget.used == 2 << 20
    stream.session.finish(1.0)
    assert budget.used == 0


@pytest.mark.parametrize("shadow", [False, True], ids=["a reply of Envoy's own", "a shadow run"])
def test_a_message_of_which_nothing_is_kept_gives_its_memory_back(shadow: bool) -> None:
    """Its stream may stay open for long, and other requests need the memory."""
    stream = Stream()
    if shadow:
        stream.send(ProcessingRequest(request_headers=HttpHeaders(), observability_mode=True))
        messages = [ProcessingRequest(request_body=HttpBody(body=bytes(1 << 20), end_of_stream=True))]
    else:
        stream.headers(FULL_DUPLEX_STREAMED, response=FULL_DUPLEX_STREAMED)
        stream.body(b"{" * 1000, eos=False)
        stream.send(ProcessingRequest(response_headers=HttpHeaders()))
        messages = [ProcessingRequest(response_body=HttpBody(body=bytes(1 << 20)))]
    for message in messages * 2:
        assert stream.session.hold_arriving(1 << 20)
        assert stream.budget.used == 1 << 20
        stream.send(message)
        assert stream.budget.used == 0


@pytest.mark.parametrize("kind", ["response_headers", "response_body", "response_trailers"])
def test_memory_that_is_given_back_is_held_no_more(kind: str) -> None:
    """The filter need not be shown the headers of responses."""
    stream = Stream()
    stream.headers(FULL_DUPLEX_STREAMED, response=FULL_DUPLEX_STREAMED)
    for _ in range(3):
        stream.body(bytes(1 << 20), eos=False)
    assert stream.budget.used == 3 << 20
    message = ProcessingRequest()
    getattr(message, kind).SetInParent()
    stream.send(message)
    assert stream.budget.used == 0
    assert not stream.session._chunks


@pytest.mark.parametrize("mode", [BUFFERED, FULL_DUPLEX_STREAMED])
def test_large_bodies_that_are_announced_leave_room_for_others(mode: BodySendMode) -> None:
    budget = MemoryBudget(8 << 20)
    announced = [Stream(budget=budget) for _ in range(4)]
    answers = [stream.headers(mode, content_length=str(2 << 20)) for stream in announced]
    assert rejection(answers[3])[:2] == (503, "overloaded")
    assert [kinds(a) for a in answers[:3]] == [[] if mode == FULL_DUPLEX_STREAMED else ["request_headers"]] * 3
    assert budget.used == 6 << 20
    small = Stream(budget=budget)
    small.headers(mode)
    assert destination(small.body()[0]) in TARGETS
    for stream in (*announced, small):
        stream.session.finish(1.0)
    assert budget.used == 0


@pytest.mark.parametrize("mode", [BUFFERED, FULL_DUPLEX_STREAMED])
def test_reading_a_long_body_takes_memory_of_the_budget(mode: BodySendMode) -> None:
    body = large(600)
    for limit, expected in ((100 << 20, None), (1 << 20, (413, "body-too-large"))):
        stream = Stream(budget=MemoryBudget(limit))
        stream.headers(mode)
        answers = stream.body(body)
        if expected is None:
            assert destination(answers[0]) in TARGETS
        else:
            assert rejection(answers)[:2] == expected
    budget = MemoryBudget(100 << 20)
    assert budget.take(99 << 20)
    stream = Stream(budget=budget)
    stream.headers(mode)
    assert rejection(stream.body(body))[:2] == (503, "overloaded")
    assert budget.used == 99 << 20


MESSAGES: list[Callable[[Stream], list[ProcessingResponse]]] = [
    lambda s: s.headers(None),
    lambda s: s.headers(None, eos=True),
    lambda s: s.body(CHAT[:100], eos=False),
    lambda s: s.body(CHAT),
    lambda s: s.body(b""),
    lambda s: s.trailers(),
    lambda s: s.send(ProcessingRequest()),
    lambda s: s.send(ProcessingRequest(response_headers=HttpHeaders())),
    lambda s: s.send(ProcessingRequest(response_body=HttpBody(body=b"x"))),
    lambda s: s.send(ProcessingRequest(response_trailers=HttpTrailers())),
]


@given(
    st.sampled_from([NONE, STREAMED, BUFFERED, BUFFERED_PARTIAL, FULL_DUPLEX_STREAMED]),
    st.sampled_from([NONE, STREAMED, BUFFERED, FULL_DUPLEX_STREAMED]),
    st.booleans(),
    st.sampled_from([1 << 30, 500]),
    st.lists(st.integers(0, len(MESSAGES) - 1), max_size=10),
)
def test_every_order_is_answered_or_a_named_error(
    mode: BodySendMode, response: BodySendMode, observe: bool, memory: int, order: list[int]
) -> None:
    stream = Stream(observe_responses=observe, budget=MemoryBudget(memory))
    picks = immediates = 0
    try:
        for answers in (
            stream.headers(mode, response=response) if k < 0 else MESSAGES[k](stream) for k in (-1, *order)
        ):
            for reply in answers:
                kind = reply.WhichOneof("response")
                picks += reply.HasField("dynamic_metadata")
                immediates += kind == "immediate_response"
            assert picks + immediates <= 1, "a request is answered once"
    except ProtocolError:
        pass
    assert stream.session.answered == bool(picks + immediates)
    stream.session.finish(1.0)
    assert stream.session.closed
    assert all(load.open_responses == 0 for load in stream.router.loads)
    assert stream.budget.used == 0


# ------------------------------------------------------------------------------------------------ two-way requests

TWO_WAY: list[dict[str, Any]] = [
    {"upgrade": "websocket", ":method": "GET"},
    {":method": "CONNECT"},
    {"content_type": "application/grpc"},
    {"content_type": "application/grpc+proto"},
]


@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize("mode", [NONE, STREAMED, BUFFERED, BUFFERED_PARTIAL])
@pytest.mark.parametrize("more", TWO_WAY, ids=str)
def test_a_request_whose_body_may_not_end_is_answered_at_its_headers(
    more: dict[str, Any], mode: BodySendMode, observed: bool
) -> None:
    stream = Stream(observe_responses=observed)
    (reply,) = stream.headers(mode, path="/v1/realtime", **more)
    assert destination(reply) in TARGETS
    assert stream.session.closed


@pytest.mark.parametrize("more", TWO_WAY, ids=str)
def test_in_full_duplex_a_two_way_request_is_passed_on_chunk_by_chunk(more: dict[str, Any]) -> None:
    stream = Stream()
    (reply,) = stream.headers(FULL_DUPLEX_STREAMED, response=FULL_DUPLEX_STREAMED, path="/v1/realtime", **more)
    assert destination(reply) in TARGETS
    for data, end in ((b"one", False), (b"two", False)):
        (back,) = stream.body(data, eos=end)
        assert back.request_body.response.body_mutation.streamed_response.body == data
        (down,) = stream.send(ProcessingRequest(response_body=HttpBody(body=data.upper())))
        assert down.response_body.response.body_mutation.streamed_response.body == data.upper()
    (back,) = stream.body(b"", eos=True)
    assert back.request_body.response.body_mutation.streamed_response.end_of_stream
    assert not stream.session.closed
    assert not stream.session.awaits_client


def test_an_offer_of_http_2_is_no_upgrade() -> None:
    stream = Stream()
    assert kinds(stream.headers(BUFFERED, upgrade="h2c")) == ["request_headers"]
    assert destination(stream.body()[0]) in TARGETS


# ------------------------------------------------------------------------------------------------ names of headers


@pytest.mark.parametrize("kind", ["inference-objective", "inference-fairness-id", "model-name-rewrite"])
def test_the_newer_name_of_a_control_header_wins(kind: str) -> None:
    pairs: dict[str, Any] = {f"x-llm-d-{kind}": "new", f"x-gateway-{kind}": "old"}
    names = {"inference-objective": headers.OBJECTIVES, "inference-fairness-id": headers.FAIRNESS_IDS}
    found = names.get(kind, headers.MODEL_REWRITES)
    assert next(pairs[name] for name in found if name in pairs) == "new"
    stream = Stream()
    stream.headers(BUFFERED, **pairs)
    (reply,) = stream.body()
    assert set(reply.request_body.response.header_mutation.remove_headers) >= set(pairs)
    if kind == "model-name-rewrite":
        assert json.loads(reply.request_body.response.body_mutation.body)["model"] == "new"


def test_names_of_headers_have_no_case() -> None:
    stream = Stream()
    more: dict[str, Any] = {"X-LLM-D-Model-Name-Rewrite": "new", "Content-Type": "application/json"}
    stream.headers(BUFFERED, **more)
    (reply,) = stream.body()
    assert json.loads(reply.request_body.response.body_mutation.body)["model"] == "new"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_a_chat_without_messages_gets_400(path: str) -> None:
    stream = Stream()
    stream.headers(BUFFERED, path=path)
    (reply,) = stream.body(b'{"model": "m", "messages": []}')
    assert reply.immediate_response.status.code == 400


# ------------------------------------------------------------------------------------------------ compressed bodies


@pytest.mark.parametrize("mode", [BUFFERED, FULL_DUPLEX_STREAMED])
def test_a_compressed_body_is_read_and_passed_on_as_it_came(mode: BodySendMode) -> None:
    plain, stream = Stream(), Stream()
    body = gzip.compress(CHAT)
    plain.headers(BUFFERED)
    plain.body()
    stream.headers(mode, content_encoding="gzip")
    answers = stream.body(body)
    assert stream.took_long
    assert stream.request == plain.request
    if mode is FULL_DUPLEX_STREAMED:
        assert answers[1].request_body.response.body_mutation.streamed_response.body == body
    else:
        assert not answers[0].request_body.response.HasField("body_mutation")
    stream.session.finish(0.0)
    assert stream.budget.used == 0


def test_a_compressed_body_whose_model_changes_goes_on_without_compression() -> None:
    stream = Stream(models=[Model("m", targets=(ModelTarget("other"),))])
    stream.headers(BUFFERED, content_encoding="gzip")
    (reply,) = stream.body(gzip.compress(CHAT))
    mutation = reply.request_body.response
    assert json.loads(mutation.body_mutation.body)["model"] == "other"
    assert "content-encoding" in mutation.header_mutation.remove_headers


def test_a_compressed_body_whose_model_stays_goes_on_as_it_was_sent() -> None:
    stream = Stream()
    stream.headers(BUFFERED, content_encoding="gzip")
    (reply,) = stream.body(gzip.compress(CHAT))
    assert stream.request.model == "m"
    mutation = reply.request_body.response
    assert not mutation.HasField("body_mutation")
    assert "content-encoding" not in mutation.header_mutation.remove_headers


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("br", b"\x0b\x02\x80"),
        ("gzip", CHAT),
        ("gzip", gzip.compress(CHAT)[:-12]),
        ("gzip", gzip.compress(b"[" * (64 << 20))),
        ("gzip, br", gzip.compress(CHAT)),
    ],
    ids=["unknown", "not compressed", "cut", "bomb", "twice"],
)
def test_a_body_that_cannot_be_decoded_is_routed_unread(encoding: str, body: bytes) -> None:
    stream = Stream()
    stream.headers(BUFFERED, content_encoding=encoding)
    (reply,) = stream.body(body)
    assert destination(reply) in TARGETS
    assert stream.request.prompt_bytes == 0
    stream.session.finish(0.0)
    assert stream.budget.used == 0


def test_a_decoded_body_is_held_to_the_limits_of_every_body() -> None:
    stream = Stream(max_json_values=1_000)
    stream.headers(BUFFERED, content_encoding="gzip")
    assert rejection(stream.body(gzip.compress(b'{"model": "m", "x": [' + b"[]," * 2_000 + b"1]}")))[:2] == (
        413,
        "too-many-values",
    )
    full = Stream(budget=MemoryBudget(1 << 20))
    assert full.budget.take(1 << 20)
    full.headers(BUFFERED, content_encoding="gzip")
    full.body(gzip.compress(CHAT))
    full.session.finish(0.0)
    assert full.budget.used == 1 << 20


def test_a_compressed_body_that_was_cut_off_is_read_as_far_as_it_goes() -> None:
    words = " ".join(str(k * 7919 % 10007) for k in range(40_000))
    body = gzip.compress(json.dumps({"model": "m", "messages": [{"role": "user", "content": words}]}).encode())
    stream = Stream()
    stream.headers(BUFFERED_PARTIAL, content_encoding="gzip", content_length=str(len(body)))
    (reply,) = stream.body(body[: len(body) // 2], eos=False)
    assert destination(reply) in TARGETS
    assert stream.request.prompt_bytes == pytest.approx(len(words), rel=0.05)


# ------------------------------------------------------------------------------------------------ what an engine keeps


@pytest.mark.parametrize("mode", [STREAMED, FULL_DUPLEX_STREAMED])
@pytest.mark.parametrize("pieces", [1, 2])
def test_a_response_that_was_seen_is_read_cancelled_and_continued_where_it_is(mode: BodySendMode, pieces: int) -> None:
    stream = Stream(observe_responses=True)
    stream.headers(BUFFERED, response=mode, path="/v1/responses")
    stream.body(b'{"model": "m", "input": "Hi"}')
    assert stream.session.decision is not None
    stream.send(ProcessingRequest(response_headers=HttpHeaders()))
    text = b'{"object":"response","model":"m","id":"resp_77","output":[]}'
    for k in range(pieces):
        chunk = text if pieces == 1 else (b" " * 100, text)[k]
        stream.send(ProcessingRequest(response_body=HttpBody(body=chunk, end_of_stream=k == pieces - 1)))
    kept = stream.session.decision.endpoint.target
    for path, body in (
        ("/v1/responses/resp_77", None),
        ("/v1/responses/resp_77/cancel", b""),
        ("/v1/responses", b'{"model": "m", "input": "Go on", "previous_response_id": "resp_77"}'),
    ):
        for _ in range(5):
            other = Stream()
            other.router, other.session._router = stream.router, stream.router
            answers = other.headers(BUFFERED, eos=body is None, path=path)
            if body is not None:
                answers = other.body(body)
            assert destination(answers[0]) == kept


def test_chunks_are_looked_through_for_a_responses_id_before_they_are_passed_unread() -> None:
    stream = Stream()
    stream.headers(FULL_DUPLEX_STREAMED, response=FULL_DUPLEX_STREAMED, path="/v1/responses")
    stream.body(b'{"model": "m", "input": "Hi"}')
    chunk = ProcessingRequest(response_body=HttpBody(body=b'{"id":"resp_77"}')).SerializeToString()
    stream.send(ProcessingRequest(response_headers=HttpHeaders()))
    assert stream.session.pass_chunk(chunk) is None
    stream.send(ProcessingRequest.FromString(chunk))
    assert stream.session.pass_chunk(chunk) is not None


def test_what_the_body_goes_on_with_comes_before_the_session() -> None:
    stream = Stream(session_header="x-my-session")
    stream.headers(BUFFERED, path="/v1/responses", x_my_session="s")
    stream.body(b'{"model": "m", "previous_response_id": "resp_77"}')
    assert stream.request.state == "resp_77"


def test_requests_of_a_session_that_cannot_be_read_go_to_one_endpoint() -> None:
    def chosen(body: bytes, **more: Any) -> str:
        stream = Stream(session_header="x-my-session")
        stream.headers(BUFFERED, content_encoding="br", **more)
        return destination(stream.body(body)[0])

    sessions = {k: {chosen(bytes([k, turn]), x_my_session=f"s{k}") for turn in range(3)} for k in range(12)}
    assert {len(targets) for targets in sessions.values()} == {1}
    assert len(set.union(*sessions.values())) == 3


def test_a_session_does_not_keep_a_prompt_from_the_endpoint_that_holds_it() -> None:
    stream = Stream()
    stream.headers(BUFFERED, x_session_id="s")
    stream.body()
    assert stream.request.state == ""
