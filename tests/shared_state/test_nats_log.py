"""How a picker logs in to a real NATS server, and what it says when that does not work."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nats.aio.client import Client

from tests.waiting import eventually
from warmroute.extproc.tls import new_pair
from warmroute.shared_state.credentials import parse
from warmroute.shared_state.nats_log import Entry, LogError, LogOptions, NatsLog, Position
from warmroute.standalone.child import Child
from warmroute.standalone.nats import nats_server_path
from warmroute.standalone.ports import free_port

pytestmark = pytest.mark.integration


@asynccontextmanager
async def server(tmp_path: Path, configuration: str) -> AsyncIterator[int]:
    """A server with JetStream; yields its port."""
    port, file = free_port(), tmp_path / "nats.conf"
    streams = f'jetstream {{ store_dir: "{tmp_path / "js"}", max_memory_store: 64M, max_file_store: 64M }}'
    file.write_text(f'listen: "127.0.0.1:{port}"\n{streams}\n{configuration}')
    argv = [str(nats_server_path()), "--config", str(file)]
    async with Child("nats-server", argv, tmp_path / "nats.log") as child:
        await eventually(lambda: "Server is ready" in child.tail(), "the server")
        yield port


async def ignore(entry: Entry) -> None:
    """Do nothing with an entry."""


async def publish_one(url: str, *, credentials: Path | None = None, tls: Path | None = None) -> bytes:
    """Connect, publish, and return what was stored. Raises LogError."""
    options = LogOptions((url,), "warmroute.test", credentials, tls, 600.0, 1 << 20, 1)
    async with NatsLog(options, ignore) as log:
        entry, _, _ = await log.begin(b"hello")
        await log.read(None)
        return entry.data


# ---------------------------------------------------------------- a name of several members


@pytest.mark.parametrize("hangs", [True, False])
async def test_a_member_that_hangs_or_is_away_keeps_no_picker_from_the_others_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    """The resolver may name it first each time. It takes connections and says nothing, as a process that was stopped."""
    resolve = socket.getaddrinfo

    def members(host: Any, *arguments: Any, **options: Any) -> Any:
        addresses = ("127.0.0.2", "127.0.0.1") if host == "nats.test" else (host,)
        return [found for address in addresses for found in resolve(address, *arguments, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", members)
    if hangs:
        monkeypatch.setattr("warmroute.shared_state.nats_log.shuffle", lambda addresses: None)
    async with server(tmp_path, "") as port:
        with socket.socket() as hanging:
            if hangs:
                hanging.bind(("127.0.0.2", port))
                hanging.listen()
            assert await publish_one(f"nats://nats.test:{port}") == b"hello"


# ---------------------------------------------------------------- where reading goes on


@pytest.mark.parametrize(
    ("number", "stamped_later", "expected"),
    [(2, 0.0, [3, 4]), (4, 0.0, []), (0, 0.0, [1, 2, 3, 4]), (2, 5.0, [1, 2, 3, 4]), (1000, 0.0, [1, 2, 3, 4])],
    ids=["the third", "the end", "the beginning", "others were there", "more were there"],
)
async def test_reading_goes_on_where_it_ended_unless_the_log_was_emptied(
    tmp_path: Path, number: int, stamped_later: float, expected: list[int]
) -> None:
    """A cluster of which all members were restarted has the log that they made, with other entries."""
    entries: list[Entry] = []

    async def keep(entry: Entry) -> None:
        entries.append(entry)

    async with server(tmp_path, "") as port:
        options = LogOptions((f"nats://127.0.0.1:{port}",), "warmroute.test", None, None, 600.0, 1 << 20, 1)
        async with NatsLog(options, keep) as log:
            for text in (b"1", b"2", b"3", b"4"):
                await log.begin(text)
            await log.read(None)
            await eventually(lambda: len(entries) == 4, "all are read")
            stamps = {entry.number: entry.stamped_at for entry in entries}
            since = Position(log.created, number, stamps.get(number, 0.0) + stamped_later)
        entries.clear()
        async with NatsLog(options, keep) as log:
            await log.read(since)
            await log.begin(b"5")
            await eventually(lambda: bool(entries) and entries[-1].data == b"5", "the new one is read")
    assert [entry.number for entry in entries[:-1]] == expected


# ---------------------------------------------------------------- credentials

KINDS = {"operator": 14 << 3, "account": 0, "user": 20 << 3}


class Nkey:
    """A key as NATS writes it (https://github.com/nats-io/nkeys)."""

    def __init__(self, kind: str) -> None:
        self.kind = KINDS[kind]
        self._private = Ed25519PrivateKey.generate()
        raw = serialization.Encoding.Raw
        self._seed = self._private.private_bytes(raw, serialization.PrivateFormat.Raw, serialization.NoEncryption())
        self.public = _text(
            bytes([self.kind]) + self._private.public_key().public_bytes(raw, serialization.PublicFormat.Raw)
        )

    @property
    def seed(self) -> str:
        return _text(bytes([18 << 3 | self.kind >> 5, (self.kind & 31) << 3]) + self._seed)

    def claims(self, subject: str, name: str, nats: Mapping[str, object]) -> str:
        """A JWT that this key has signed."""
        body = {"iss": self.public, "sub": subject, "name": name, "iat": 1700000000, "nats": {**nats, "version": 2}}
        digest = hashlib.new("sha512_256", json.dumps(body).encode()).digest()
        body["jti"] = base64.b32encode(digest).decode().rstrip("=")
        parts = [_url({"typ": "JWT", "alg": "ed25519-nkey"}), _url(body)]
        signature = self._private.sign(".".join(parts).encode())
        return ".".join([*parts, base64.urlsafe_b64encode(signature).decode().rstrip("=")])


def _text(body: bytes) -> str:
    check = binascii.crc_hqx(body, 0).to_bytes(2, "little")
    return base64.b32encode(body + check).decode().rstrip("=")


def _url(content: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


def creds(jwt: str, seed: str) -> str:
    """As NATS's tools write a credentials file."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        "************************* IMPORTANT *************************\nNKEY Seed printed below is private.\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )


async def test_credentials_of_a_file_log_in(tmp_path: Path) -> None:
    operator, system, account, user = Nkey("operator"), Nkey("account"), Nkey("account"), Nkey("user")
    no_limit = dict.fromkeys(
        ("subs", "data", "payload", "imports", "exports", "conn", "leaf", "mem_storage", "streams", "consumer"), -1
    )
    limits = {"type": "account", "limits": {**no_limit, "wildcards": True}}
    nobody = {
        "type": "account",
        "limits": {**dict.fromkeys(no_limit, -1), "mem_storage": 0, "streams": 0, "consumer": 0},
    }
    preloaded = {
        system.public: operator.claims(system.public, "SYS", nobody),
        account.public: operator.claims(account.public, "warmroute", limits),
    }
    configuration = (
        f"operator: {operator.claims(operator.public, 'operator', {'type': 'operator', 'system_account': system.public})}\n"
        f"system_account: {system.public}\nresolver: MEMORY\nresolver_preload: {{\n"
        + "".join(f"{key}: {jwt}\n" for key, jwt in preloaded.items())
        + "}\n"
    )
    mine, others = tmp_path / "picker.creds", tmp_path / "other.creds"
    jwt = account.claims(user.public, "picker", {"type": "user", "subs": -1, "data": -1, "payload": -1})
    mine.write_text(creds(jwt, user.seed))
    others.write_text(creds(jwt, Nkey("user").seed))
    async with server(tmp_path, configuration) as port:
        url = f"nats://127.0.0.1:{port}"
        assert await publish_one(url, credentials=mine) == b"hello"
        with pytest.raises(LogError, match="Authorization Violation"):
            await publish_one(url, credentials=others)
        with pytest.raises(LogError, match="Authorization Violation"):
            await publish_one(url)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no user JWT"),
        (b"\xff\xfe", "no user JWT"),
        (b"-----BEGIN NATS USER JWT-----", "no user JWT"),
        (b"-----BEGIN NATS USER JWT-----\nabc\n", "no user's seed"),
        (creds("abc", "SUABC").encode(), "its seed is no NATS key"),
        (creds("abc", "1").encode(), "its seed is no NATS key"),
        (creds("abc", Nkey("account").seed).encode(), "its seed is not a user's"),
    ],
)
async def test_a_file_that_has_no_credentials_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(content)
    path = tmp_path / "picker.creds"
    path.write_bytes(content)
    with pytest.raises(LogError, match=f"picker.creds: {message}"):
        await publish_one("nats://127.0.0.1:1", credentials=path)


async def test_a_credentials_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"No such file.*none\.creds"):
        await publish_one("nats://127.0.0.1:1", credentials=tmp_path / "none.creds")


# ---------------------------------------------------------------- TLS


def certificate(directory: Path) -> Path:
    """``tls.crt`` and ``tls.key`` for localhost, which sign themselves, and so ``ca.crt``."""
    key, pem = new_pair("localhost")
    directory.mkdir()
    for name, content in (("ca.crt", pem), ("tls.crt", pem), ("tls.key", key)):
        (directory / name).write_bytes(content)
    return directory


@pytest.mark.parametrize("optional", [False, True])
@pytest.mark.parametrize("scheme", ["nats", "tls"])
async def test_a_server_with_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, optional: bool) -> None:
    """Also one that would talk without it, too."""
    directory = certificate(tmp_path / "tls")
    configuration = (
        f'tls {{ cert_file: "{directory}/tls.crt", key_file: "{directory}/tls.key", ca_file: "{directory}/ca.crt"'
        f"{'' if optional else ', verify: true'} }}\nallow_non_tls: {str(optional).lower()}\n"
    )
    encrypted: list[bool] = []
    connect_command = Client._connect_command

    def login(client: Client) -> bytes:
        transport: Any = client._transport
        encrypted.append(transport._io_writer.get_extra_info("ssl_object") is not None)
        return connect_command(client)

    monkeypatch.setattr(Client, "_connect_command", login)
    async with server(tmp_path, configuration) as port:
        assert await publish_one(f"{scheme}://localhost:{port}", tls=directory) == b"hello"
    assert encrypted == [True]


@pytest.mark.parametrize(("scheme", "files"), [("tls", True), ("tls", False), ("nats", True)])
async def test_no_password_goes_to_a_server_without_tls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, files: bool
) -> None:
    logins: list[Client] = []
    monkeypatch.setattr(Client, "_connect_command", logins.append)
    directory = certificate(tmp_path / "tls")
    async with server(tmp_path, "authorization { user: picker, password: secret }\n") as port:
        with pytest.raises(LogError, match="the server has no TLS"):
            await publish_one(f"{scheme}://picker:secret@127.0.0.1:{port}", tls=directory if files else None)
    assert not logins


async def test_tls_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=f"ca.crt, tls.crt or tls.key in {tmp_path}: No such file"):
        await publish_one("tls://127.0.0.1:1", tls=tmp_path)


# ---------------------------------------------------------------- what a user may do


@pytest.mark.parametrize(
    ("rights", "refused"),
    [
        ('["warmroute.test", "$JS.API.STREAM.>"]', "consumer.create"),
        ('["$JS.API.>"]', "warmroute.test"),
        ('["warmroute.test"]', "stream.info"),
    ],
)
async def test_a_right_that_the_user_lacks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rights: str, refused: str
) -> None:
    monkeypatch.setattr("warmroute.shared_state.nats_log.CONNECT_TIMEOUT", 1.0)
    users = f'{{ user: a, password: b, permissions: {{ publish: {rights}, subscribe: [">"] }} }}'
    async with server(tmp_path, f"authorization {{ users: [ {users} ] }}\n") as port:
        with pytest.raises(LogError, match=f"permissions violation for publish to .*{refused}"):
            await publish_one(f"nats://a:b@127.0.0.1:{port}")


async def limits_of(port: int) -> tuple[float | None, int | None, int | None]:
    """Age in seconds, bytes and replicas of the log."""
    client = Client()
    await client.connect(f"nats://127.0.0.1:{port}")
    config = (await client.jetstream().stream_info("warmroute_test")).config
    await client.close()
    return config.max_age, config.max_bytes, config.num_replicas


@pytest.mark.parametrize("age", [300.0, 60.0], ids=["five minutes", "one minute"])
async def test_a_log_that_is_there_gets_the_limits_of_the_settings(tmp_path: Path, age: float) -> None:
    async with server(tmp_path, "") as port:
        url = f"nats://127.0.0.1:{port}"
        await publish_one(url)
        async with NatsLog(LogOptions((url,), "warmroute.test", None, None, age, 2 << 20, 1), ignore) as log:
            assert log.changed_limits
            assert (await log.begin(b"more"))[0].number == 2  # it was not emptied
        assert await limits_of(port) == (age, 2 << 20, 1)


async def test_a_log_whose_limits_cannot_be_had_is_used_as_it_is(tmp_path: Path) -> None:
    async with server(tmp_path, "") as port:
        url = f"nats://127.0.0.1:{port}"
        await publish_one(url)
        async with NatsLog(LogOptions((url,), "warmroute.test", None, None, 600.0, 1 << 20, 3), ignore) as log:
            assert not log.changed_limits
            assert "replicas > 1 not supported" in log.keeps_limits
            assert (await log.begin(b"more"))[0].number == 2
        assert await limits_of(port) == (600.0, 1 << 20, 1)


async def test_a_user_who_may_not_change_the_limits_is_told_so_and_of_no_later_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("warmroute.shared_state.nats_log.CONNECT_TIMEOUT", 1.0)
    rights = '{ allow: ["warmroute.test", "$JS.API.>"], deny: ["$JS.API.STREAM.UPDATE.>"] }'
    users = f'{{ user: a, password: b, permissions: {{ publish: {rights}, subscribe: [">"] }} }}'
    async with server(tmp_path, f"authorization {{ users: [ {users} ] }}\n") as port:
        url = f"nats://a:b@127.0.0.1:{port}"
        await publish_one(url)
        async with NatsLog(LogOptions((url,), "warmroute.test", None, None, 300.0, 2 << 20, 1), ignore) as log:
            assert "stream.update" in log.keeps_limits
            await log._client.close()
            with pytest.raises(LogError, match="the connection was closed"):
                await log.publish(b"more")


async def test_a_cluster_without_a_majority_is_told_and_not_the_members_that_are_away(tmp_path: Path) -> None:
    gone = [free_port(), free_port()]
    routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in gone)
    cluster = f'server_name: a\ncluster {{ name: c, listen: "127.0.0.1:{free_port()}", routes: [{routes}] }}\n'
    async with server(tmp_path, cluster) as port:
        urls = (*(f"nats://127.0.0.1:{port}" for port in gone), f"nats://127.0.0.1:{port}")
        for _ in range(3):  # they are tried in any order
            with pytest.raises(LogError) as failure:
                async with NatsLog(LogOptions(urls, "warmroute.test", None, None, 600.0, 1 << 20, 3), ignore):
                    pass
            assert "Connect call failed" not in str(failure.value)
        print(failure.value)


async def test_the_reason_for_which_the_log_cannot_be_made_is_told(tmp_path: Path) -> None:
    async with server(tmp_path, "") as port:
        client = Client()
        await client.connect(f"nats://127.0.0.1:{port}")
        await client.jetstream().add_stream(name="all", subjects=["warmroute.>"])
        await client.close()
        with pytest.raises(LogError, match="subjects overlap with an existing stream"):
            await publish_one(f"nats://127.0.0.1:{port}")
