"""ProcessingResponse builders. Every function returns serialised messages; what can be constant is serialised once."""

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
    StreamedBodyResponse,
    TrailersResponse,
)
from warmroute.request.rejections import Rejection, rejection_body

CHUNK_BYTES = 62_000
"""Body bytes in one message of FULL_DUPLEX_STREAMED, the protocol's habit (gRPC windows are 64 KiB)."""

NOTHING = b""
"""An empty message, where a stream ends with nothing left to say and Envoy has no request open on it.

For a request in flight Envoy takes it for an answer to nothing, which with fail-close ends the request with 500.
"""
CONTINUE_REQUEST_HEADERS = ProcessingResponse(request_headers=HeadersResponse()).SerializeToString()
CONTINUE_REQUEST_BODY = ProcessingResponse(request_body=BodyResponse()).SerializeToString()
CONTINUE_REQUEST_TRAILERS = ProcessingResponse(request_trailers=TrailersResponse()).SerializeToString()
CONTINUE_RESPONSE_HEADERS = ProcessingResponse(response_headers=HeadersResponse()).SerializeToString()
CONTINUE_RESPONSE_BODY = ProcessingResponse(response_body=BodyResponse()).SerializeToString()
CONTINUE_RESPONSE_TRAILERS = ProcessingResponse(response_trailers=TrailersResponse()).SerializeToString()


def _set(name: str, value: str) -> HeaderValueOption:
    """Only ``raw_value`` (Envoy takes ``value`` for an empty header), always overwriting: a client must not choose."""
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
    """The answer to request headers: header and metadata name the endpoint."""
    common = CommonResponse(header_mutation=_destination(targets, content_length, remove, echo))
    return _with_metadata(ProcessingResponse(request_headers=HeadersResponse(response=common)), targets)


@lru_cache(maxsize=8192)
def destination_in_body(targets: str, *, remove: tuple[str, ...] = (), echo: bool = False) -> bytes:
    """The answer to a buffered body that stays as it is."""
    common = CommonResponse(header_mutation=_destination(targets, None, remove, echo))
    return _with_metadata(ProcessingResponse(request_body=BodyResponse(response=common)), targets)


def destination_and_body(targets: str, body: bytes, *, remove: tuple[str, ...] = (), echo: bool = False) -> bytes:
    """The answer to a buffered body that is replaced by ``body``."""
    common = CommonResponse(
        header_mutation=_destination(targets, len(body), remove, echo), body_mutation=BodyMutation(body=body)
    )
    return _with_metadata(ProcessingResponse(request_body=BodyResponse(response=common)), targets)


def destination_in_trailers(targets: str) -> bytes:
    """The answer to trailers of a request without a body: only metadata can still name the endpoint."""
    return _with_metadata(ProcessingResponse(request_trailers=TrailersResponse()), targets)


def streamed_request_body(body: bytes, *, end_of_stream: bool) -> Iterator[bytes]:
    """The whole body back to Envoy in FULL_DUPLEX_STREAMED; the last message carries ``end_of_stream``."""
    size = len(body)
    for start in range(0, size or 1, CHUNK_BYTES):
        chunk = StreamedBodyResponse(
            body=body[start : start + CHUNK_BYTES], end_of_stream=end_of_stream and start + CHUNK_BYTES >= size
        )
        common = CommonResponse(body_mutation=BodyMutation(streamed_response=chunk))
        yield ProcessingResponse(request_body=BodyResponse(response=common)).SerializeToString()


def streamed_response_body(body: bytes, *, end_of_stream: bool) -> bytes:
    """A response chunk as it came, in FULL_DUPLEX_STREAMED."""
    chunk = StreamedBodyResponse(body=body, end_of_stream=end_of_stream)
    common = CommonResponse(body_mutation=BodyMutation(streamed_response=chunk))
    return ProcessingResponse(response_body=BodyResponse(response=common)).SerializeToString()


def served_in_headers(served: str) -> bytes:
    """The answer to response headers in conformance tests: who served the request."""
    common = CommonResponse(header_mutation=HeaderMutation(set_headers=[_set(headers.TEST_SERVED, served)]))
    return ProcessingResponse(response_headers=HeadersResponse(response=common)).SerializeToString()


def reject(rejection: Rejection, path: str) -> bytes:
    """An answer to the client in place of the engine's."""
    set_headers = [_set("content-type", "application/json"), _set(headers.DROPPED_REASON, rejection.reason)]
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
