"""Endpoints and models from a file: YAML or JSON, read again whenever it changes."""

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

from warmroute.errors import ConfigurationError
from warmroute.pool.endpoint import EndpointSpec
from warmroute.pool.models import Criticality, Model, ModelTarget
from warmroute.pool.pool import Pool

logger = logging.getLogger(__name__)

POLL_INTERVAL = 0.25
"""Seconds between two looks at the file. A change counts once two looks have found the same: it may be half written."""


def _address(value: str) -> str:
    if value == "localhost":
        return "127.0.0.1"
    bare = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    try:
        return str(ip_address(bare))
    except ValueError:
        raise ValueError(
            "must be an IP address (or localhost): Envoy sends requests to the ip:port that it is told"
        ) from None


def _text(value: object) -> object:
    """Names and labels may look like numbers: YAML reads `name: 7` as one."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Text = Annotated[str, BeforeValidator(_text)]
Name = Annotated[Text, Field(min_length=1)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EndpointEntry(_Entry):
    """One item of ``endpoints``."""

    name: Name
    namespace: Name = "default"
    address: Annotated[Text, AfterValidator(_address)]
    port: Annotated[int, Field(ge=1, le=65535)]
    labels: dict[Text, Text] = {}


class ModelTargetEntry(_Entry):
    """One item of a model's ``targets``."""

    name: Name
    weight: Annotated[int, Field(ge=1, le=1_000_000)] = 1


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
        """The endpoints for the pool."""
        return [
            EndpointSpec(e.namespace, e.name, address=e.address, port=e.port, labels=e.labels) for e in self.endpoints
        ]

    def model_table(self) -> list[Model]:
        """The models for the pool."""
        return [
            Model(m.name, tuple(ModelTarget(t.name, t.weight) for t in m.targets), Criticality.named(m.criticality))
            for m in self.models
        ]


def parse(text: str) -> EndpointsFile:
    """Read a file's text. Raises ConfigurationError that names the line or the entry and what is wrong with it."""
    try:
        # JSON is YAML but for tabs between its tokens, and inside its strings it has none.
        loader = yaml.SafeLoader(text.replace("\t", " ") if text.lstrip().startswith("{") else text)
        tree = loader.get_single_node()
        repeated = [*_repeated_keys(tree)]
        content = loader.construct_document(tree) if tree is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        raise ConfigurationError(f"{where}{error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigurationError("must be a mapping with the key `endpoints`")
    try:
        file = EndpointsFile.model_validate(content)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            given = "" if item["type"] in {"missing", "extra_forbidden"} else f" (given: {item['input']!r})"
            message = "there is no such key" if item["type"] == "extra_forbidden" else item["msg"]
            problems.append(f"{_place(tree, item['loc'])}: {message.removeprefix('Value error, ')}{given}")
        raise ConfigurationError("; ".join(problems)) from error
    if problems := [*repeated, *_repetitions(file, tree)]:
        raise ConfigurationError("; ".join(problems))
    return file


def _repetitions(file: EndpointsFile, tree: yaml.Node | None) -> Iterator[str]:
    ids: dict[str, int] = {}
    targets: dict[str, int] = {}
    names: dict[str, int] = {}
    for i, spec in enumerate(file.specs()):
        for seen, key in ((ids, spec.id), (targets, spec.target)):
            if seen.setdefault(key, i) != i:
                yield f"{_place(tree, ('endpoints', i))}: {key} is endpoints[{seen[key]}] already"
    for i, model in enumerate(file.models):
        if names.setdefault(model.name, i) != i:
            yield f"{_place(tree, ('models', i))}: {model.name} is models[{names[model.name]}] already"


def _repeated_keys(node: yaml.Node | None) -> Iterator[str]:
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    yield f"line {key.start_mark.line + 1}: the key {key.value} is there twice"
                seen.add(key.value)
            yield from _repeated_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated_keys(item)


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

    ``load`` once at the start, then ``start``. Polling sees every way in which a file can change: written in place,
    renamed over, or the link switched of a mounted ConfigMap. ``reloaded`` hears whether a change could be used.
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
        """What is in the file and cannot be used: to find that out once is enough."""
        self._seen: bytes | OSError | None = None
        self._problem: str | None = None
        self._task: asyncio.Task[None] | None = None

    def load(self) -> None:
        """Read the file into the pool. Raises ConfigurationError and leaves the pool as it was."""
        content = self._read()
        if isinstance(content, OSError):
            raise ConfigurationError(f"cannot read the endpoints file {self._path}: {content.strerror}")
        self._apply(content, self._parse(content))

    async def start(self) -> None:
        """Begin to watch the file."""
        self._task = asyncio.create_task(self._watch(), name="endpoints file")

    async def stop(self) -> None:
        """End the watch; safe before :meth:`start` and a second time."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._poll_interval)
            try:
                await self._look(await asyncio.to_thread(self._read))
            except Exception:
                logger.exception("the watch of the endpoints file failed and goes on")

    async def _look(self, content: bytes | OSError) -> None:
        settled, self._seen = _same(content, self._seen), content
        if not settled:
            return
        if isinstance(content, OSError):
            self._refused = None
            self._report(f"cannot read {self._path}: {content.strerror}")
        elif content == self._applied:
            if self._problem is not None:
                self._reloaded(True)
                logger.info("endpoints file is as it was before", extra={"fields": {"file": str(self._path)}})
            self._problem = self._refused = None
        elif content != self._refused:
            try:
                # In a thread: YAML with a thousand endpoints takes half a second.
                file = await asyncio.to_thread(self._parse, content)
            except ConfigurationError as error:
                self._refused = content
                self._report(str(error))
            else:
                self._apply(content, file)
                self._problem = self._refused = None
                self._reloaded(True)
                ready = sum(endpoint.ready for endpoint in self._pool.endpoints.values())
                logger.info(
                    "endpoints file read again", extra={"fields": {"file": str(self._path), "endpoints": ready}}
                )

    def _report(self, problem: str) -> None:
        if problem != self._problem:
            self._problem = problem
            self._reloaded(False)
            logger.error("endpoints file not used; the pool stays as it was", extra={"fields": {"error": problem}})

    def _read(self) -> bytes | OSError:
        try:
            return self._path.read_bytes()
        except OSError as error:
            return error

    def _parse(self, content: bytes) -> EndpointsFile:
        try:
            return parse(content.decode("utf-8-sig"))
        except (ConfigurationError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"the endpoints file {self._path}: {error}") from error

    def _apply(self, content: bytes, file: EndpointsFile) -> None:
        self._pool.replace(file.specs(), self._clock())
        self._pool.models.replace(file.model_table())
        self._applied = content


def _same(content: bytes | OSError, other: bytes | OSError | None) -> bool:
    if isinstance(content, OSError):
        return isinstance(other, OSError) and content.errno == other.errno
    return content == other
