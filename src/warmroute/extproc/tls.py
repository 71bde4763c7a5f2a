"""Certificates of the ext_proc port: self-signed in memory by default, or from a directory and reloaded on change."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable
from pathlib import Path

import grpc
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


def self_signed() -> grpc.ServerCredentials:
    """Credentials with a self-signed certificate, for gateways that use TLS without verification, as most do."""
    return grpc.ssl_server_credentials([new_pair("localhost")])


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


def from_directory(path: Path, reloaded: Callable[[bool], object] = lambda ok: None) -> grpc.ServerCredentials:
    """Credentials from ``tls.crt`` and ``tls.key`` in ``path``, reloaded at the next connection after they have changed.

    Raises ConfigurationError if they are unusable at start. A bad pair later is logged, and the old pair stays in use.
    ``reloaded`` is called with the result of each reload, in a thread of gRPC.
    """
    pair = _CertificatePair(path, reloaded)
    return grpc.dynamic_ssl_server_credentials(pair.configuration, pair.fetch)  # type: ignore[arg-type]  # may be None


class _CertificatePair:
    """The pair in use. After ``__init__`` only gRPC's thread touches it."""

    def __init__(self, path: Path, reloaded: Callable[[bool], object]) -> None:
        self._reloaded = reloaded
        self._key, self._certificate = path / "tls.key", path / "tls.crt"
        try:
            self._stamp = self._stamps()
            self.configuration = self._read()
        except _UNUSABLE as error:
            raise ConfigurationError(f"cannot use the certificate in {path}: {error}") from error

    def _stamps(self) -> tuple[tuple[int, int], ...]:
        return tuple((s.st_mtime_ns, s.st_ino) for s in (self._certificate.stat(), self._key.stat()))

    def _read(self) -> grpc.ServerCertificateConfiguration:
        key, certificate = self._key.read_bytes(), self._certificate.read_bytes()
        public = serialization.load_pem_private_key(key, password=None).public_key()
        if x509.load_pem_x509_certificate(certificate).public_key() != public:
            raise ValueError("tls.key is not the key of tls.crt")
        return grpc.ssl_server_certificate_configuration([(key, certificate)])

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """The new pair, or None if it has not changed. gRPC calls this for each connection."""
        try:
            stamp = self._stamps()
            if stamp == self._stamp:
                return None
            self._stamp = stamp
            self.configuration = self._read()
        except _UNUSABLE as error:
            self._reloaded(False)
            logger.warning("new certificate unusable, old one stays in use", extra={"fields": {"error": str(error)}})
            return None
        self._reloaded(True)
        logger.info("certificate reloaded", extra={"fields": {"path": str(self._certificate)}})
        return self.configuration
