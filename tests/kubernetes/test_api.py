"""The client of the API server: certificates that are renewed on disk."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest
import yaml
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from warmroute.kubernetes.api import ApiError, Cluster

pytestmark = pytest.mark.integration


def certificate(name: str, key: ec.EllipticCurvePrivateKey, authority: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """As Kubernetes makes them: every authority is called ``kubernetes``."""
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kubernetes")]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(key is authority, None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(authority, hashes.SHA256())
    )


@asynccontextmanager
async def secure_server(directory: Path, port: int = 0) -> AsyncIterator[int]:
    """A server of ``/version`` with a certificate of a new authority, which is written to ``authority.pem``."""
    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    own = directory / f"{port}.pem"
    own.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate("apiserver", key, authority).public_bytes(pem)
    )
    (directory / "authority.pem").write_bytes(certificate("kubernetes", authority, authority).public_bytes(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own)
    app = web.Application()
    app.router.add_get("/version", version)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, ssl_context=context, reuse_address=True)
    await site.start()
    try:
        yield site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    finally:
        await runner.cleanup()


async def version(request: web.Request) -> web.Response:
    return web.json_response({"major": "1"})


async def test_a_new_certificate_authority_is_read_when_the_old_one_does_not_do(tmp_path: Path) -> None:
    cluster = Cluster()
    async with secure_server(tmp_path) as port:
        server = {"server": f"https://127.0.0.1:{port}", "certificate-authority": str(tmp_path / "authority.pem")}
        kubeconfig = tmp_path / "kubeconfig"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "clusters": [{"name": "test", "cluster": server}],
            "users": [{"name": "test", "user": {"token": "token"}}],
        }
        kubeconfig.write_text(yaml.safe_dump(config))
        cluster.find({"KUBECONFIG": str(kubeconfig)})
        assert await cluster.get("/version") == {"major": "1"}
    async with secure_server(tmp_path, port):
        with pytest.raises(ApiError, match="ertificate"):
            await cluster.get("/version")
        assert await cluster.get("/version") == {"major": "1"}
    await cluster.close()
