"""Serialised messages that are read and written without objects of their fields, against protobuf's own encoder."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from warmroute.extproc import ext_proc_pb2 as pb
from warmroute.extproc import replies
from warmroute.extproc.wire import bytes_beside_body, response_chunk


@given(
    st.binary(max_size=300), st.booleans(), st.text(max_size=200), st.sampled_from(["request_body", "response_body"])
)
def test_all_but_the_body_counts(content: bytes, shadow: bool, value: str, kind: str) -> None:
    message = pb.ProcessingRequest(observability_mode=shadow)
    message.metadata_context.filter_metadata["envoy.lb"].fields["key"].string_value = value
    without = len(message.SerializeToString())
    getattr(message, kind).body = content
    counted = bytes_beside_body(message.SerializeToString(), 1 << 20)
    assert without <= counted <= without + 4  # tag and length of the body


def test_headers_count_and_counting_stops_above_the_limit() -> None:
    message = pb.ProcessingRequest()
    message.request_headers.headers.headers.add(key="k" * 100)
    data = message.SerializeToString()
    assert bytes_beside_body(data, 1 << 20) == len(data)
    assert bytes_beside_body(100 * data, 150) == 2 * len(data)


@given(st.binary(max_size=100))
def test_any_bytes_are_counted_or_refused(data: bytes) -> None:
    try:
        assert bytes_beside_body(data, 50) >= 0
    except DecodeError:
        with pytest.raises(DecodeError):
            pb.ProcessingRequest.FromString(data)


@given(
    size=st.sampled_from([0, 1, 119, 120, 127, 128, 16_370, 16_384, 70_000]),
    end_of_stream=st.booleans(),
    metadata=st.booleans(),
)
def test_a_chunk_of_a_response_is_found_and_wrapped_as_protobuf_does_it(
    size: int, end_of_stream: bool, metadata: bool
) -> None:
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)
    message = pb.ProcessingRequest(response_body=pb.HttpBody(body=body, end_of_stream=end_of_stream))
    if metadata:
        message.metadata_context.filter_metadata["envoy.lb"].fields["key"].string_value = "x" * size
    chunk = response_chunk(message.SerializeToString())
    assert chunk == message.response_body.SerializeToString()
    assert pb.ProcessingResponse.FromString(replies.response_chunk(chunk)) == pb.ProcessingResponse(
        response_body=_returned(body, end_of_stream=end_of_stream)
    )


def _returned(body: bytes, *, end_of_stream: bool) -> pb.BodyResponse:
    streamed = pb.StreamedBodyResponse(body=body, end_of_stream=end_of_stream)
    return pb.BodyResponse(response=pb.CommonResponse(body_mutation=pb.BodyMutation(streamed_response=streamed)))


@given(
    size=st.sampled_from([0, 1, 119, 120, 127, 128, 2_400, 16_370, 16_384, replies.CHUNK_BYTES]),
    end_of_stream=st.booleans(),
)
def test_returned_bodies_are_what_protobuf_makes_of_them(size: int, end_of_stream: bool) -> None:
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)
    expected = _returned(body, end_of_stream=end_of_stream)
    in_request = pb.ProcessingResponse(request_body=expected)
    in_response = pb.ProcessingResponse(response_body=expected)
    for replied, answer in (
        ([replies.returned_chunk(body, end_of_stream=end_of_stream)], in_request),
        (replies.streamed_request_body(body, end_of_stream=end_of_stream), in_request),
        ([replies.streamed_response_body(body, end_of_stream=end_of_stream)], in_response),
    ):
        assert [pb.ProcessingResponse.FromString(reply) for reply in replied] == [answer]


CHUNK = pb.ProcessingRequest(response_body=pb.HttpBody(body=b"x"))


@pytest.mark.parametrize(
    "message",
    [
        b"",
        pb.ProcessingRequest(request_body=pb.HttpBody(body=b"x")).SerializeToString(),
        CHUNK.SerializeToString() + pb.ProcessingRequest(response_trailers=pb.HttpTrailers()).SerializeToString(),
        CHUNK.SerializeToString() + pb.ProcessingRequest(observability_mode=True).SerializeToString(),
        CHUNK.SerializeToString() + b"\x42\x05",
        CHUNK.SerializeToString()[:-1],
        b"\x2a\x02\x18\x01",  # a field of a newer protocol
        b"\x2a\x80",
        b"\x2a\x03\x0a\x09x",
    ],
)
def test_whatever_is_not_only_a_chunk_must_be_decoded(message: bytes) -> None:
    assert response_chunk(message) is None


@given(st.binary(max_size=40))
def test_no_bytes_make_it_fail(data: bytes) -> None:
    chunk = response_chunk(b"\x2a" + data)
    assert chunk is None or pb.HttpBody.FromString(chunk) is not None
