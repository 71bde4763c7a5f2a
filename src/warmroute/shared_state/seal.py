"""Encryption of batches with the key that the pickers of a pool share. WITHOUT IO.

A batch in the log is ``version (1 byte) | picker (8) | sequence (8) | ciphertext``, big-endian. The cipher is AES-256-GCM
(NIST SP 800-38D); picker and sequence are its nonce, so a nonce is used once: the picker's number is drawn at random when
its process starts. Without the key a reader of the log learns who wrote when, and how much. A batch that was not written
with the key is not accepted.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from warmroute.errors import WarmrouteError

VERSION = 3
"""Of the batches that this program writes and reads; see protos/shared_state.proto."""
SHORTEST_KEY = 16
"""Fewest bytes of a key file, white space at both ends not counted."""
_HEAD = struct.Struct(">BQQ")


class Sealed(NamedTuple):
    """The part of a batch in the log that is in clear."""

    version: int
    picker: int
    sequence: int


class UnreadableError(WarmrouteError):
    """The bytes are no batch, or one that was written with another key."""


class Seal:
    """Encrypts and decrypts batches. ``secret`` is the content of the key file; ``pool`` separates pools that share it."""

    def __init__(self, secret: bytes, pool: str) -> None:
        """Raises ValueError if the secret is shorter than :data:`SHORTEST_KEY`."""
        if len(secret) < SHORTEST_KEY:
            raise ValueError(f"the key must have at least {SHORTEST_KEY} bytes")
        key = HKDF(SHA256(), length=32, salt=None, info=b"warmroute shared state: " + pool.encode()).derive(secret)
        self._cipher = AESGCM(key)

    def close(self, batch: bytes, picker: int, sequence: int) -> bytes:
        """The encrypted batch. No two batches may have equal ``picker`` and ``sequence``."""
        head = _HEAD.pack(VERSION, picker, sequence)
        return head + self._cipher.encrypt(head[1:], batch, head)

    def open(self, sealed: bytes) -> bytes:
        """The batch; raises UnreadableError. Call it for batches of :data:`VERSION`."""
        head = sealed[: _HEAD.size]
        try:
            return self._cipher.decrypt(head[1:], sealed[_HEAD.size :], head)
        except InvalidTag:
            raise UnreadableError("not written with this key") from None


def head_of(sealed: bytes) -> Sealed:
    """What is in clear; raises UnreadableError if the bytes are too few for a batch of any version."""
    if len(sealed) < _HEAD.size:
        raise UnreadableError("too short")
    return Sealed._make(_HEAD.unpack_from(sealed))
