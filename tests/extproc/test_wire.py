"""The size of a message outside its body, against protobuf's own encoder."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from warmroute.extproc import ext_proc_pb2 as pb
from warmroute.extproc.wire import bytes_beside_body


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
