"""Endpoints and models from a YAML or JSON file, reloaded when it changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from time import monotonic
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from warmroute import yaml_file
from warmroute.errors import ConfigurationError
from warmroute.pool.endpoint import ROLE_LABELS, EndpointSpec
from warmroute.pool.models import Criticality, Model, ModelTarget
from warmroute.pool.pool import Pool
from warmroute.tasks import BackgroundTask
from warmroute.yaml_file import shown, summary

logger = logging.getLogger(__name__)

POLL_INTERVAL = 0.25
"""Seconds between two reads of the file. A change is used once two reads agree, since a file may be half written."""


def _address(value: str) -> str:
    if value == "localhost":
        return "127.0.0.1"
    bare = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    try:
        return str(ip_address(bare))
    except ValueError:
        raise ValueError("must be an IP address (or localhost): Envoy resolves no names here") from None


def _text(value: object) -> object:
    """Numbers as text: YAML reads the name ``7`` as a number."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _number(value: object) -> object:
    """``true`` is no number, though it counts as 1 in Python."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


Text = Annotated[str, BeforeValidator(_text)]
Name = Annotated[Text, Field(min_length=1, max_length=253)]
"""At most as long as a name in Kubernetes."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EndpointEntry(_Entry):
    """One item of ``endpoints``."""

    name: Name
    namespace: Name = "default"
    address: Annotated[Text, AfterValidator(_address)]
    port: Annotated[int, BeforeValidator(_number), Field(ge=1, le=65535)]
    labels: dict[Text, Text] = {}
    role: Literal["decode", "prefill", "encode", "both"] | None = None
    """As the label llm-d.ai/role."""
    cache_generation: Text = ""


class ModelTargetEntry(_Entry):
    """One item of a model's ``targets``."""

    name: Name
    weight: Annotated[int, BeforeValidator(_number), Field(ge=1, le=1_000_000)] = 1


class ModelEntry(_Entry):
    """One item of ``models``."""

    name: Name
    targets: list[ModelTargetEntry] = []
    criticality: Literal["Critical", "Standard", "Sheddable"] = "Standard"


class EndpointsFile(_Entry):
    """The whole file."""

    endpoints: list[EndpointEntry]
    models: list[ModelEntry] = []

    def specs(self) -> list[EndpointSpec]:
        """All endpoints, in the file's order."""
        return [
            EndpointSpec(
                e.namespace,
                e.name,
                address=e.address,
                port=e.port,
                labels=e.labels if e.role is None else {**e.labels, ROLE_LABELS[0]: e.role},
                cache_generation=e.cache_generation,
            )
            for e in self.endpoints
        ]

    def for_clients(self) -> list[EndpointSpec]:
        """The endpoints that take requests of clients, in the file's order: not those with the role prefill or encode."""
        return [spec for spec in self.specs() if spec.answers_clients]

    def model_table(self) -> list[Model]:
        """The models for the pool."""
        return [
            Model(m.name, tuple(ModelTarget(t.name, t.weight) for t in m.targets), Criticality.named(m.criticality))
            for m in self.models
        ]


def parse(text: str) -> EndpointsFile:
    """Parse the text of a file. Raises ConfigurationError that names the line, the entry and the fault."""
    document = yaml_file.Document(text)
    tree = document.tree
    if not isinstance(document.content, dict):
        raise ConfigurationError("must be a mapping with the key `endpoints`")
    try:
        file = EndpointsFile.model_validate(document.content)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            given = "" if item["type"] in {"missing", "extra_forbidden"} else f" (given: {shown(item['input'])})"
            message = "unknown key" if item["type"] == "extra_forbidden" else item["msg"]
            problems.append(f"{_place(tree, item['loc'])}: {message.removeprefix('Value error, ')}{given}")
        raise ConfigurationError(summary(problems)) from error
    if problems := [*_repetitions(file, tree)]:
        raise ConfigurationError(summary(problems))
    return file


def parse_content(content: bytes, path: Path) -> EndpointsFile:
    """Parse the content of the file at ``path``. Raises ConfigurationError, which names that too."""
    try:
        return parse(yaml_file.decoded(content))
    except ConfigurationError as error:
        raise ConfigurationError(f"the endpoints file {path}: {error}") from error


def _repetitions(file: EndpointsFile, tree: yaml.Node | None) -> Iterator[str]:
    ids: dict[str, int] = {}
    targets: dict[str, int] = {}
    names: dict[str, int] = {}
    for i, spec in enumerate(file.specs()):
        for seen, key in ((ids, spec.id), (targets, spec.target)):
            if seen.setdefault(key, i) != i:
                yield f"{_place(tree, ('endpoints', i))}: {shown(key)} repeats endpoints[{seen[key]}]"
    for i, model in enumerate(file.models):
        if names.setdefault(model.name, i) != i:
            yield f"{_place(tree, ('models', i))}: {shown(model.name)} repeats models[{names[model.name]}]"


def _place(node: yaml.Node | None, path: tuple[int | str, ...]) -> str:
    """Line and entry of ``path`` in the file, as far as the file has it."""
    line = 0
    for step in path:
        if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = node.start_mark.line
        elif isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(step)), None)
            if found is None:
                break
            key, node = found
            line = key.start_mark.line
    entry = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")
    return f"line {line + 1}, {entry}"


class FileDiscovery:
    """Keeps the pool equal to a file.

    Call ``load`` once, then ``start``. The file is polled, since it can change in several ways: written in place, replaced
    by a rename, or by switching the symbolic link of a mounted ConfigMap. ``reloaded`` is called with True after each
    reload and with False after each failed one.
    """

    def __init__(
        self,
        path: Path,
        pool: Pool,
        *,
        reloaded: Callable[[bool], None] = lambda ok: None,
        clock: Callable[[], float] = monotonic,
        poll_interval: float = POLL_INTERVAL,
    ) -> None:
        self._path = path
        self._pool = pool
        self._reloaded = reloaded
        self._clock = clock
        self._poll_interval = poll_interval
        self._applied: bytes | None = None
        self._refused: bytes | None = None
        """Content that could not be used; it is parsed only once."""
        self._seen: bytes | str | None = None
        self._problem: str | None = None
        self._task = BackgroundTask(self._watch, "endpoints file")

    def load(self) -> None:
        """Read the file into the pool. Raises ConfigurationError and leaves the pool unchanged."""
        content = self._read()
        if isinstance(content, str):
            raise ConfigurationError(content)
        self._apply(content, parse_content(content, self._path))

    async def start(self) -> None:
        """Start watching the file."""
        self._task.start()

    async def stop(self) -> None:
        """Stop watching. Safe before :meth:`start` and more than once."""
        await self._task.stop()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._poll_interval)
            try:
                await self._look(await asyncio.to_thread(self._read))
            except Exception:
                logger.exception("watching the endpoints file failed; retrying")

    async def _look(self, content: bytes | str) -> None:
        """Use the content (or report the error) of one read, if the previous read gave an equal one."""
        settled, self._seen = content == self._seen, content
        if not settled:
            return
        if isinstance(content, str):
            self._refused = None
            self._report(content)
        elif content == self._applied:
            if self._problem is not None:
                self._reloaded(True)
                logger.info("endpoints file restored", extra={"fields": {"file": str(self._path)}})
            self._problem = self._refused = None
        elif content != self._refused:
            try:
                # In a thread: YAML with a thousand endpoints takes half a second.
                file = await asyncio.to_thread(parse_content, content, self._path)
            except ConfigurationError as error:
                self._refused = content
                self._report(str(error))
            else:
                self._apply(content, file)
                self._problem = self._refused = None
                self._reloaded(True)
                ready = sum(endpoint.ready for endpoint in self._pool.endpoints.values())
                logger.info("endpoints file reloaded", extra={"fields": {"file": str(self._path), "endpoints": ready}})

    def _report(self, problem: str) -> None:
        if problem != self._problem:
            self._problem = problem
            self._reloaded(False)
            logger.error("endpoints file not used; the pool is unchanged", extra={"fields": {"error": problem}})

    def _read(self) -> bytes | str:
        """The file's content, or why it cannot be read."""
        try:
            return yaml_file.read(self._path, "endpoints file")
        except ConfigurationError as error:
            return str(error)

    def _apply(self, content: bytes, file: EndpointsFile) -> None:
        self._pool.replace(file.for_clients(), self._clock())
        self._pool.models.replace(file.model_table())
        self._applied = content
