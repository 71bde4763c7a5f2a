"""A NATS credentials file (``.creds``): a user's JWT and the seed of its Ed25519 key. WITHOUT IO.

NATS's client reads such files itself with a further package, and reads one without a JWT for ever.
https://docs.nats.io/using-nats/developer/connecting/creds, https://docs.nats.io/running-a-nats-service/configuration/securing_nats/auth_intro/nkey_auth
"""

from __future__ import annotations

import base64
import binascii
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_JWT = "BEGIN NATS USER JWT"
_SEED = "BEGIN USER NKEY SEED"
_SEED_OF_USER = (18 << 3, 20 << 3)
"""The kind of a seed and that of a user's key, each in five bits."""
_KEY_SIZE = 32


class Credentials(NamedTuple):
    """What a user logs in with."""

    jwt: str
    key: Ed25519PrivateKey

    def sign(self, nonce: str) -> bytes:
        """The signature of what the server has sent, in Base64."""
        return base64.b64encode(self.key.sign(nonce.encode()))


def parse(content: bytes) -> Credentials:
    """Read the content of a file. Raises ValueError that says what is missing."""
    lines = [line.strip() for line in content.decode("ascii", "replace").splitlines()]
    return Credentials(_after(lines, _JWT, "user JWT"), _private_key(_after(lines, _SEED, "user's seed")))


def _after(lines: list[str], begin: str, what: str) -> str:
    """The line that follows the one with ``begin``."""
    for number, line in enumerate(lines[:-1]):
        if begin in line and lines[number + 1]:
            return lines[number + 1]
    raise ValueError(f"no {what}")


def _private_key(seed: str) -> Ed25519PrivateKey:
    """Two bytes of kinds, the key, two bytes CRC-16 (https://github.com/nats-io/nkeys)."""
    try:
        data = base64.b32decode(seed + "=" * (-len(seed) % 8))
    except binascii.Error:
        data = b""
    body, check = data[:-2], data[-2:]
    if len(body) != 2 + _KEY_SIZE or binascii.crc_hqx(body, 0) != int.from_bytes(check, "little"):
        raise ValueError("its seed is no NATS key")
    kinds = body[0] & 0xF8, (body[0] & 7) << 5 | (body[1] & 0xF8) >> 3
    if kinds != _SEED_OF_USER:
        raise ValueError("its seed is not a user's")
    return Ed25519PrivateKey.from_private_bytes(body[2:])
