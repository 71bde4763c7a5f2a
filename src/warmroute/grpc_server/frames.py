"""Frames, error codes and settings of HTTP/2, and the header blocks of gRPC responses. WITHOUT IO.

RFC 9113 sections 4, 6 and 7 (https://www.rfc-editor.org/rfc/rfc9113), RFC 7541, and gRPC over HTTP/2
(https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md).
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache
from struct import Struct
from urllib.parse import quote

from hpack.hpack import encode_integer

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""The first bytes of a client (section 3.4)."""
HEAD = Struct(">HBBBI")
"""The head of a frame: length (16 and 8 bits), kind, flags, stream."""
STREAM_MASK = 0x7FFF_FFFF
"""The bits of a stream's number; the highest one is reserved."""
MAX_FRAME = 16_384
"""Payload bytes of a frame, at most, either way: the protocol's default."""
DEFAULT_WINDOW = 65_535
"""Flow-control window of a connection or stream before anybody changes it (section 6.9.2)."""
MAX_WINDOW = 2**31 - 1

# Kinds of frames
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

# Flags
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20

# Settings
ENABLE_PUSH = 2
MAX_CONCURRENT_STREAMS = 3
INITIAL_WINDOW_SIZE = 4
MAX_FRAME_SIZE = 5
MAX_HEADER_LIST_SIZE = 6


class ErrorCode(IntEnum):
    """Why a stream or a connection ends (section 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class Status(IntEnum):
    """gRPC status codes (https://grpc.io/docs/guides/status-codes/)."""

    OK = 0
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


def frame(kind: int, flags: int, stream: int, payload: bytes | memoryview = b"") -> bytes:
    """A frame."""
    size = len(payload)
    return HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def prefixed(message: bytes) -> bytes:
    """A gRPC message with its prefix: not compressed, and its length."""
    return b"\x00" + len(message).to_bytes(4, "big") + message


def setting(name: int, value: int) -> bytes:
    """One entry of a SETTINGS frame."""
    return name.to_bytes(2, "big") + value.to_bytes(4, "big")


def _header(name: bytes, value: bytes) -> bytes:
    """A header that stays out of the peer's table (RFC 7541, section 6.2.2)."""
    return b"\x00" + bytes(encode_integer(len(name), 7)) + name + bytes(encode_integer(len(value), 7)) + value


RESPONSE_HEADERS = b"\x88" + _header(b"content-type", b"application/grpc")
"""``:status: 200``, and the content type of gRPC."""
NOT_GRPC = _header(b":status", b"415")
"""The answer to a request that is none of gRPC's."""


_PLAIN = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
"""Characters of ``grpc-message`` that are not percent-encoded."""


@lru_cache(maxsize=64)
def trailers(status: Status, details: str) -> bytes:
    """The header block that ends a call; ``details`` are for people."""
    block = _header(b"grpc-status", str(int(status)).encode())
    return block + _header(b"grpc-message", quote(details, safe=_PLAIN).encode()) if details else block
