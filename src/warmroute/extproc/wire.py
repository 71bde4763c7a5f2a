"""Serialised messages, read and written without objects of their fields: their size, and bodies.

protobuf makes an object of each submessage, so that 2 bytes (an empty header) become 36 bytes of memory and half a
microsecond of work; each of the four messages around a body copies it. Encoding: https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import DecodeError, Message

from warmroute.extproc.ext_proc_pb2 import HttpBody, ProcessingRequest


def field_tag(message: type[Message], field: str, wire_type: int = 2) -> bytes:
    """The byte before a field with a number below 16; 2 is the wire type of bytes and messages."""
    number: int = message.DESCRIPTOR.fields_by_name[field].number
    return bytes((number << 3 | wire_type,))


_END = field_tag(HttpBody, "end_of_stream", 0)
_BODIES = frozenset(
    ProcessingRequest.DESCRIPTOR.fields_by_name[name].number for name in ("request_body", "response_body")
)
_RESPONSE_BODY = field_tag(ProcessingRequest, "response_body")
_METADATA = field_tag(ProcessingRequest, "metadata_context")[0]
_BODY = field_tag(HttpBody, "body")
_LAST = _END + b"\1"
"""What follows the bytes of the last body of a stream."""
_ENDS = (b"", _END + b"\0", _LAST)
"""What may follow the bytes of a body."""


def bytes_beside_body(message: bytes, limit: int) -> int:
    """Bytes of a serialised ProcessingRequest outside its body; it stops counting above ``limit``.

    Raises DecodeError for what is no such message.
    """
    position = counted = 0
    while position < len(message) and counted <= limit:
        start = position
        tag, position = _varint(message, position)
        match tag & 7:  # the wire type
            case 0:
                _, position = _varint(message, position)
            case 1:
                position += 8
            case 2:
                length, position = _varint(message, position)
                if tag >> 3 in _BODIES:
                    start += length
                position += length
            case 5:
                position += 4
            case _:
                raise DecodeError("groups are not in use")
        counted += position - start
    return counted


def response_chunk(message: bytes) -> bytes | None:
    """The serialised HttpBody of a ProcessingRequest that holds a ``response_body`` and at most metadata beside it.

    None for every other message, and for a chunk with fields that this version does not know: those must be decoded.
    """
    if message[:1] != _RESPONSE_BODY:
        return None
    try:
        length, start = _varint(message, 1)
        end = start + length
        if end < len(message):
            if message[end] != _METADATA:
                return None
            length, rest = _varint(message, end + 1)
            if rest + length != len(message):
                return None
        elif end > len(message):
            return None
        body_end = start
        if message[start : start + 1] == _BODY:
            length, body_start = _varint(message, start + 1)
            body_end = body_start + length
    except DecodeError:
        return None
    return message[start:end] if body_end <= end and message[body_end:end] in _ENDS else None


def http_body(body: bytes, *, end_of_stream: bool) -> bytes:
    """A serialised HttpBody, or a StreamedBodyResponse, which has the same fields by number."""
    content = nested((_BODY,), body)
    return content + _LAST if end_of_stream else content


def nested(tags: Sequence[bytes], content: bytes) -> bytes:
    """Serialised ``content`` inside messages that have one field each: its tag in ``tags``, the innermost first."""
    size = len(content)
    pieces: list[bytes | bytearray] = [content]
    for tag in tags:
        head = bytearray(tag)
        rest = size
        while rest > 0x7F:
            head.append(rest & 0x7F | 0x80)
            rest >>= 7
        head.append(rest)
        pieces.append(head)
        size += len(head)
    pieces.reverse()
    return b"".join(pieces)


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """The integer at ``position`` and the position after it."""
    value = shift = 0
    for byte in message[position : position + 10]:
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise DecodeError("an integer is cut off")
