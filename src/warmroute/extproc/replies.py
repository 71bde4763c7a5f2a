"""Builders of ProcessingResponse. They return serialised messages; constant ones are serialised once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

from warmroute.extproc import headers
from warmroute.extproc.ext_proc_pb2 import (
    BodyMutation,
    BodyResponse,
    CommonResponse,
    HeaderAppendAction,
    HeaderMutation,
    HeadersResponse,
    HeaderValue,
    HeaderValueOption,
    HttpStatus,
    ImmediateResponse,
    ProcessingResponse,
    TrailersResponse,
)
from warmroute.extproc.wire import field_tag, http_body, nested
from warmroute.request.rejections import Rejection, rejection_body

CHUNK_BYTES = 62_000
"""Body bytes in one message of FULL_DUPLEX_STREAMED. Other pickers use this size; gRPC's flow-control window is 64 KiB."""

CONTINUE_REQUEST_HEADERS = ProcessingResponse(request_headers=HeadersResponse()).SerializeToString()
CONTINUE_REQUEST_BODY = ProcessingResponse(request_body=BodyResponse()).SerializeToString()
CONTINUE_REQUEST_TRAILERS = ProcessingResponse(request_trailers=TrailersResponse()).SerializeToString()
CONTINUE_RESPONSE_HEADERS = ProcessingResponse(response_headers=HeadersResponse()).SerializeToString()
CONTINUE_RESPONSE_BODY = ProcessingResponse(response_body=BodyResponse()).SerializeToString()
CONTINUE_RESPONSE_TRAILERS = ProcessingResponse(response_trailers=TrailersResponse()).SerializeToString()
_AROUND_BODY = (
    field_tag(BodyMutation, "streamed_response"),
    field_tag(CommonResponse, "body_mutation"),
    field_tag(BodyResponse, "response"),
)
_IN_REQUEST = (*_AROUND_BODY, field_tag(ProcessingResponse, "request_body"))
"""Tags of the messages around a StreamedBodyResponse, the innermost first."""
_IN_RESPONSE = (*_AROUND_BODY, field_tag(ProcessingResponse, "response_body"))


def _set(name: str, value: str) -> HeaderValueOption:
    """A header in ``raw_value`` (Envoy reads ``value`` as empty) that overwrites the client's."""
    return HeaderValueOption(
        header=HeaderValue(key=name, raw_value=value.encode()),
        append_action=HeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD,
    )


def _destination(targets: str, content_length: int | None, remove: Iterable[str], echo: bool) -> HeaderMutation:
    mutation = HeaderMutation(set_headers=[_set(headers.DESTINATION, targets)], remove_headers=remove)
    if content_length is not None:
        mutation.set_headers.append(_set("content-length", str(content_length)))
    if echo:
        mutation.set_headers.append(_set(headers.TEST_ECHO, f"{headers.TEST_SERVED}:{targets.split(',', 1)[0]}"))
    return mutation


def _with_metadata(response: ProcessingResponse, targets: str) -> bytes:
    namespace = response.dynamic_metadata.get_or_create_struct(headers.LB_NAMESPACE)
    namespace[headers.DESTINATION] = targets
    return response.SerializeToString()


@lru_cache(maxsize=8192)
def destination_in_headers(
    targets: str, *, content_length: int | None = None, remove: tuple[str, ...] = (), echo: bool = False
) -> bytes:
    """Reply to request headers: header and metadata name the endpoint."""
    common = CommonResponse(header_mutation=_destination(targets, content_length, remove, echo))
    return _with_metadata(ProcessingResponse(request_headers=HeadersResponse(response=common)), targets)


@lru_cache(maxsize=8192)
def destination_in_body(targets: str, *, remove: tuple[str, ...] = (), echo: bool = False) -> bytes:
    """Reply to a buffered body that stays unchanged."""
    common = CommonResponse(header_mutation=_destination(targets, None, remove, echo))
    return _with_metadata(ProcessingResponse(request_body=BodyResponse(response=common)), targets)


def destination_and_body(targets: str, body: bytes, *, remove: tuple[str, ...] = (), echo: bool = False) -> bytes:
    """Reply to a buffered body that is replaced by ``body``."""
    common = CommonResponse(
        header_mutation=_destination(targets, len(body), remove, echo), body_mutation=BodyMutation(body=body)
    )
    return _with_metadata(ProcessingResponse(request_body=BodyResponse(response=common)), targets)


@lru_cache(maxsize=1024)
def decision_metadata(reason: str, cached_share: float) -> bytes:
    """To be appended to a reply that names the endpoint: why it was chosen, as dynamic metadata for access logs.

    Serialised messages that follow each other are merged when they are read
    (https://protobuf.dev/programming-guides/encoding/#last-one-wins).
    """
    response = ProcessingResponse()
    namespace = response.dynamic_metadata.get_or_create_struct(headers.DECISION_NAMESPACE)
    namespace[headers.REASON] = reason
    namespace[headers.CACHED_SHARE] = cached_share
    return response.SerializeToString()


@lru_cache(maxsize=128)
def data_parallel_rank(rank: int, *, in_body: bool) -> bytes:
    """To be appended to a reply that names the endpoint, to headers or to a body: the header for the engine behind its port.

    Serialised messages that follow each other are merged, as in :func:`decision_metadata`.
    """
    mutation = HeaderMutation(set_headers=[_set(headers.DATA_PARALLEL_RANK, str(rank))])
    common = CommonResponse(header_mutation=mutation)
    if in_body:
        return ProcessingResponse(request_body=BodyResponse(response=common)).SerializeToString()
    return ProcessingResponse(request_headers=HeadersResponse(response=common)).SerializeToString()


def destination_in_trailers(targets: str) -> bytes:
    """Reply to trailers of a request without a body: headers have been sent on, so only metadata can name the endpoint."""
    return _with_metadata(ProcessingResponse(request_trailers=TrailersResponse()), targets)


def streamed_request_body(body: bytes, *, end_of_stream: bool) -> Iterator[bytes]:
    """The whole body, returned to Envoy in FULL_DUPLEX_STREAMED. The last message carries ``end_of_stream``."""
    size = len(body)
    for start in range(0, size or 1, CHUNK_BYTES):
        last = start + CHUNK_BYTES >= size
        yield returned_chunk(body[start : start + CHUNK_BYTES], end_of_stream=end_of_stream and last)


def returned_chunk(body: bytes, *, end_of_stream: bool) -> bytes:
    """A chunk of a request, returned unchanged in FULL_DUPLEX_STREAMED."""
    return nested(_IN_REQUEST, http_body(body, end_of_stream=end_of_stream))


def streamed_response_body(body: bytes, *, end_of_stream: bool) -> bytes:
    """A response chunk, returned unchanged in FULL_DUPLEX_STREAMED."""
    return nested(_IN_RESPONSE, http_body(body, end_of_stream=end_of_stream))


def response_chunk(chunk: bytes) -> bytes:
    """The reply that :func:`streamed_response_body` makes, of a serialised HttpBody."""
    return nested(_IN_RESPONSE, chunk)


def served_in_headers(served: str) -> bytes:
    """Reply to response headers in conformance tests: a header names the endpoint that served the request."""
    common = CommonResponse(header_mutation=HeaderMutation(set_headers=[_set(headers.TEST_SERVED, served)]))
    return ProcessingResponse(response_headers=HeadersResponse(response=common)).SerializeToString()


def reject(rejection: Rejection, path: str) -> bytes:
    """ImmediateResponse with the rejection's status, headers and JSON body."""
    set_headers = [_set("content-type", "application/json")]
    set_headers += [_set(name, rejection.reason) for name in headers.DROPPED_REASONS]
    if rejection.retry_after is not None:
        set_headers.append(_set("retry-after", str(rejection.retry_after)))
    return ProcessingResponse(
        immediate_response=ImmediateResponse(
            status=HttpStatus(code=rejection.status),
            headers=HeaderMutation(set_headers=set_headers),
            body=rejection_body(rejection, path),
            details=f"warmroute_{rejection.reason}".replace("-", "_"),
        )
    ).SerializeToString()
