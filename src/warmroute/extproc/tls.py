"""Certificates of the ext_proc port: self-signed in memory by default, or from a directory and reloaded on change."""

from __future__ import annotations

import datetime
import logging
import os
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from warmroute.errors import ConfigurationError

logger = logging.getLogger(__name__)

VALIDITY = datetime.timedelta(days=3650)
_UNUSABLE = (OSError, ValueError, TypeError, UnsupportedAlgorithm)
"""Exceptions of reading a certificate and its key. An encrypted key raises TypeError."""


def self_signed() -> ssl.SSLContext:
    """A context with a self-signed certificate, for gateways that use TLS without verification, as most do."""
    return _context(*new_pair("localhost"))


def new_pair(host: str) -> tuple[bytes, bytes]:
    """A new private key and a self-signed certificate for ``host``, both PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Warmroute")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + VALIDITY)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return key_pem, certificate.public_bytes(serialization.Encoding.PEM)


def from_directory(path: Path, reloaded: Callable[[bool], object] = lambda ok: None) -> ssl.SSLContext:
    """A context with ``tls.crt`` and ``tls.key`` from ``path``, read again at the next connection after they have changed.

    Raises ConfigurationError if they are unusable at start. A bad pair later is logged, and the old pair stays in use.
    ``reloaded`` is called with the result of each reload, on the event loop.
    """
    pair = _CertificatePair(path, reloaded)
    context = pair.context

    def at_hello(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        connection.context = pair.current()

    context.sni_callback = at_hello  # called for each connection, with and without a server name
    return context


class _CertificatePair:
    """The pair in use."""

    def __init__(self, path: Path, reloaded: Callable[[bool], object]) -> None:
        self._reloaded = reloaded
        self._key, self._certificate = path / "tls.key", path / "tls.crt"
        try:
            self._stamp = self._stamps()
            self.context = self._read()
        except _UNUSABLE as error:
            raise ConfigurationError(f"cannot use the certificate in {path}: {error}") from error

    def _stamps(self) -> tuple[tuple[int, int], ...]:
        """What changes with the files; empty while one cannot be looked at."""
        try:
            return tuple((s.st_mtime_ns, s.st_ino) for s in (self._certificate.stat(), self._key.stat()))
        except OSError:
            return ()

    def _read(self) -> ssl.SSLContext:
        key, certificate = self._key.read_bytes(), self._certificate.read_bytes()
        public = serialization.load_pem_private_key(key, password=None).public_key()
        if x509.load_pem_x509_certificate(certificate).public_key() != public:
            raise ValueError("tls.key is not the key of tls.crt")
        return _context(key, certificate)

    def current(self) -> ssl.SSLContext:
        """The context with the new pair if it has changed and can be used, else with the old one."""
        stamp = self._stamps()
        if stamp == self._stamp:
            return self.context
        self._stamp = stamp
        try:
            self.context = self._read()
        except _UNUSABLE as error:
            self._reloaded(False)
            logger.warning("new certificate unusable, old one stays in use", extra={"fields": {"error": str(error)}})
            return self.context
        self._reloaded(True)
        logger.info("certificate reloaded", extra={"fields": {"path": str(self._certificate)}})
        return self.context


def _context(key: bytes, certificate: bytes) -> ssl.SSLContext:
    """A server's context. The pair is loaded from memory: the picker's file system may be read-only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2"])
    with _file(key + b"\n" + certificate) as path:
        context.load_cert_chain(path)
    return context


@contextmanager
def _file(content: bytes) -> Iterator[str]:
    """The path of a file with ``content``, which only this process can open."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("certificate")
        try:
            os.write(descriptor, content)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        with NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            yield file.name
