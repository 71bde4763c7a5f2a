"""Compressed bodies: decoded within a bound that is known before. Pure functions, safe to be called from any thread.

What cannot be decoded is no error: the engine may know the encoding, so the request is routed without its prompt.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from typing import Protocol

MAX_RATIO = 100
"""Decoded bytes for each byte of a body, at most. Chats shrink to a third or a tenth; what shrinks to less than a hundredth
is made to fill memory."""
SMALL = 64 << 10
"""Decoded bytes that any body may have."""


def decoded_limit(length: int, max_body_bytes: int) -> int:
    """Bytes that a compressed body of ``length`` bytes may become, at most."""
    return min(max_body_bytes, SMALL + MAX_RATIO * length)


def is_compressed(encoding: str) -> bool:
    """Whether a ``content-encoding`` says that the body is not sent as it is."""
    return encoding.strip().lower() not in ("", "identity")


def decode(body: bytes, encoding: str, limit: int, *, whole: bool = True) -> bytes | None:
    """The decoded body; unless it has to be ``whole``, as much as there is of one that was cut off.

    None if its encoding is not known, if it is not in that encoding, or if it has more than ``limit`` bytes.
    """
    for decoder in _DECODERS.get(encoding.strip().lower(), ()):
        text = _decoded(decoder(), body, limit, whole=whole)
        if text is not None:
            return text
    return None


class _Decoder(Protocol):
    """What decompressors of the standard library have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def _decoded(decoder: _Decoder, body: bytes, limit: int, *, whole: bool) -> bytes | None:
    try:
        text = decoder.decompress(body, limit + 1)
    except _ERRORS:
        return None
    complete = decoder.eof or not whole
    return text if complete and len(text) <= limit and not decoder.unused_data else None


def _zlib(window: int) -> Callable[[], _Decoder]:
    return lambda: zlib.decompressobj(window)


_GZIP = (_zlib(zlib.MAX_WBITS | 16),)
_DECODERS: dict[str, tuple[Callable[[], _Decoder], ...]] = {
    "gzip": _GZIP,
    "x-gzip": _GZIP,
    # RFC 9110 means zlib's format; some clients send the bare one.
    "deflate": (_zlib(zlib.MAX_WBITS), _zlib(-zlib.MAX_WBITS)),
}
_ERRORS: tuple[type[Exception], ...] = (zlib.error,)

if sys.version_info >= (3, 14):
    from compression import zstd

    _DECODERS["zstd"] = (zstd.ZstdDecompressor,)
    _ERRORS = (zlib.error, zstd.ZstdError)
