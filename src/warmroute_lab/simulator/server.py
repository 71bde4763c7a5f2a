"""The simulated engine on a socket: vLLM's HTTP surface in front of :class:`~warmroute_lab.simulator.engine.Engine`.

One timer drives an engine: it sleeps until the engine's next event and then lets virtual time catch up with the clock, so
lateness never adds up and an idle engine costs nothing.
"""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from math import ceil, inf
from uuid import uuid4

import orjson
from aiohttp import web

from warmroute.errors import ConfigurationError
from warmroute_lab.simulator import tokenizer
from warmroute_lab.simulator.engine import Engine, Output, Request
from warmroute_lab.simulator.metrics import MetricsPage
from warmroute_lab.simulator.openai import (
    Answer,
    Generation,
    RequestError,
    bad_request,
    parse_body,
    parse_generation,
    parse_tokenize,
    usage_of,
)
from warmroute_lab.simulator.profile import DEFAULT_PROFILE, profile_named

ENGINE_VERSION = "0.26.0"
"""The vLLM whose answers these look like."""
DEFAULT_ANSWER_TOKENS = 128
"""Length of an answer whose request gives no limit."""
LAST_PORT = 65_535
MAX_BODY_BYTES = 256 << 20


@dataclass(slots=True)
class Faults:
    """How often things go wrong: shares of the generation requests, 0 to 1. May change while the server runs."""

    fail_rate: float = 0.0
    """Answered with HTTP 500."""
    stall_rate: float = 0.0
    """Never answered; the connection stays open."""
    reset_rate: float = 0.0
    """The connection is reset."""

    def __post_init__(self) -> None:
        """Raise ConfigurationError for what is no share."""
        for name in ("fail_rate", "stall_rate", "reset_rate"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise ConfigurationError(f"{name} must be a number from 0 to 1 (given: {value!r})")


@dataclass(frozen=True, slots=True)
class SimulatorOptions:
    """What one simulated engine is."""

    host: str = "127.0.0.1"
    port: int = 0
    """0: any free one."""
    name: str = "simulator"
    """Sent with every answer as ``x-simulator-name``."""
    model: str = "Qwen/Qwen2.5-7B-Instruct"
    profile: str = DEFAULT_PROFILE
    time_scale: float = 1.0
    """2.0: twice as fast."""
    max_num_seqs: int | None = None
    num_gpu_blocks: int | None = None
    max_loras: int | None = None
    lora_modules: tuple[str, ...] = ()
    """Names of the LoRA adapters that can be asked for as models."""
    slow_start: float = 0.0
    """Seconds after the start during which everything is answered with 503."""
    faults: Faults = field(default_factory=Faults)
    seed: int = 0


class SimulatorServer:
    """One simulated engine, serving. ``start`` and ``stop`` may be called again: each start is a fresh engine."""

    def __init__(self, options: SimulatorOptions) -> None:
        """Raise ConfigurationError for an unknown profile or impossible options."""
        profile = profile_named(options.profile)
        limits = {
            name: value
            for name in ("max_num_seqs", "num_gpu_blocks", "max_loras")
            if (value := getattr(options, name)) is not None
        }
        for name, value in limits.items():
            if value < (2 if name == "num_gpu_blocks" else 1):
                raise ConfigurationError(f"{name} is too small: {value}")
        if options.time_scale <= 0:
            raise ConfigurationError(f"time_scale must be above 0 (given: {options.time_scale})")
        if options.port > LAST_PORT:
            raise ConfigurationError(f"there is no port {options.port}: the last one is {LAST_PORT}")
        self.options = options
        self.faults = replace(options.faults)
        self._profile = replace(profile, **limits)
        self._runner: web.AppRunner | None = None
        self._port: int | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def port(self) -> int:
        """The port listened on. Raises RuntimeError before :meth:`start`."""
        if self._port is None:
            raise RuntimeError("the simulator has not been started")
        return self._port

    @property
    def url(self) -> str:
        """The base URL."""
        host = f"[{self.options.host}]" if ":" in self.options.host else self.options.host
        return f"http://{host}:{self.port}"

    async def start(self) -> None:
        """Listen. Raises ConfigurationError if the address cannot be had."""
        options = self.options
        self._loop = asyncio.get_running_loop()
        self._origin = time.monotonic()
        self._started = time.time()
        self._random = random.Random(options.seed)
        self._loras = dict.fromkeys(options.lora_modules)
        self.engine = Engine(self._profile, seed=options.seed)
        self._metrics = MetricsPage(
            self.engine,
            options.model,
            started=self._started,
            time_scale=options.time_scale,
            loras=bool(self._loras),
        )
        self._streams: dict[Request, _Stream] = {}
        self._due = inf

        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._envelope])
        app.add_routes(
            [
                web.post("/v1/chat/completions", self._chat),
                web.post("/v1/completions", self._completions),
                web.get("/v1/models", self._models),
                web.post("/v1/load_lora_adapter", self._load_lora_adapter),
                web.post("/v1/unload_lora_adapter", self._unload_lora_adapter),
                web.post("/tokenize", self._tokenize),
                web.get("/health", self._health),
                web.get("/ping", self._health),
                web.get("/version", self._version),
                web.get("/metrics", self._metrics_page),
                web.get("/metrics/", self._filtered_metrics_page),
                web.post("/simulator/faults", self._set_faults),
            ]
        )
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, options.host, self._port or options.port)
        try:
            await site.start()
        except OSError as error:
            await runner.cleanup()
            raise ConfigurationError(f"cannot listen on {options.host}:{options.port}: {error.strerror}") from error
        self._runner = runner
        self._port = runner.addresses[0][1]

    async def stop(self) -> None:
        """Close every connection. The port is kept for the next start."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    # Time

    def _now(self) -> float:
        """Virtual seconds since the start."""
        return (time.monotonic() - self._origin) * self.options.time_scale

    def _drive(self) -> None:
        """Hand out what is due, and set the timer for what comes next."""
        for output in self.engine.advance(self._now()):
            self._deliver(output)
        due = self.engine.next_event()
        if self._timer is not None:
            if due == self._due:
                return
            self._timer.cancel()
            self._timer = None
        self._due = due
        if due < inf:
            # Event loops count in milliseconds: rounding up saves waking too early, and a wait for the rest.
            delay = max(0.0, due - self._now()) / self.options.time_scale
            self._timer = self._loop.call_later(ceil(delay * 1000) / 1000, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._drive()

    def _deliver(self, output: Output) -> None:
        request = output.request
        stream = self._streams.get(request)
        if stream is None:
            return
        if stream.tokens:
            self._metrics.observe_tokens(output.tokens, output.time - stream.last)
        else:
            self._metrics.observe_first_token(request)
        if output.finished:
            self._metrics.observe_finished(request, stream.finish_reason)
        stream.push(output)

    # Requests

    @web.middleware
    async def _envelope(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """What holds for every answer: the pod's name, errors in vLLM's shape, the slow start."""
        response: web.StreamResponse
        try:
            if time.monotonic() - self._origin < self.options.slow_start:
                raise RequestError(503, "The engine is starting.", "ServiceUnavailableError")
            response = await handler(request)
        except RequestError as error:
            response = web.Response(status=error.status, body=error.body, content_type="application/json")
        except web.HTTPException as error:
            if error.status not in (404, 405):
                raise
            response = web.json_response({"detail": error.reason}, status=error.status)
        if not response.prepared:
            response.headers["x-simulator-name"] = self.options.name
        return response

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, chat=True)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, chat=False)

    async def _generate(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        body = await request.read()
        await self._misbehave(request)
        generation = parse_generation(body, chat=chat, default_model=self.options.model)
        adapter = self._adapter(generation.model)
        prompt_tokens = tokenizer.token_count(generation.prompt)
        output_tokens, reason = self._answer_length(generation, prompt_tokens)
        text = generation.answer(output_tokens)
        work = Request(
            request.headers.get("x-request-id") or uuid4().hex[:16],
            prompt_tokens,
            output_tokens,
            generation.hashes(text, adapter, self._profile.block_size),
            adapter,
        )
        stream = _Stream(work, reason)
        answer = Answer(generation, work.id, int(time.time()), reason)
        try:
            self.engine.submit(work, self._now())
        except ValueError as error:
            raise bad_request(str(error)) from None
        self._streams[work] = stream
        try:
            self._drive()
            if generation.stream:
                return await self._stream(request, stream, answer, text)
            while stream.tokens < output_tokens:
                await stream.more(stream.tokens)
            usage = usage_of(prompt_tokens, output_tokens, work.cached_tokens)
            return web.Response(body=answer.whole(text, usage), content_type="application/json")
        finally:
            del self._streams[work]
            if stream.tokens < output_tokens:
                self.engine.abort(work, self._now())
                self._metrics.observe_aborted()
                self._drive()

    async def _stream(self, request: web.Request, stream: _Stream, answer: Answer, text: str) -> web.StreamResponse:
        headers = {"Content-Type": "text/event-stream; charset=utf-8", "x-simulator-name": self.options.name}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        work, size = stream.request, tokenizer.TOKEN_BYTES
        sent = 0
        while sent < work.output_tokens:
            await stream.more(sent)
            ready = stream.tokens
            finished = ready == work.output_tokens
            piece = answer.chunk(text[sent * size : ready * size], last=finished)
            if not sent:
                piece = answer.first_chunk() + piece
            if finished:
                piece += answer.closing(usage_of(work.prompt_tokens, ready, work.cached_tokens))
            sent = ready
            await response.write(piece)
        await response.write_eof()
        return response

    async def _misbehave(self, request: web.Request) -> None:
        """Do what the faults ask for, by lot."""
        faults = self.faults
        lot = self._random.random()
        if lot < faults.fail_rate:
            raise RequestError(500, "Simulated failure.", "InternalServerError")
        lot -= faults.fail_rate
        if lot < faults.reset_rate:
            _reset(request)
            raise asyncio.CancelledError
        lot -= faults.reset_rate
        if lot < faults.stall_rate:
            await asyncio.Event().wait()

    def _adapter(self, model: str) -> str | None:
        if model == self.options.model:
            return None
        if model in self._loras:
            return model
        raise RequestError(404, f"The model `{model}` does not exist.", "NotFoundError", "model")

    def _answer_length(self, generation: Generation, prompt_tokens: int) -> tuple[int, str]:
        """How many tokens will be generated, and why no more."""
        limit, wanted = self._profile.max_model_len, generation.max_tokens
        if prompt_tokens + (wanted or 1) > limit:
            raise bad_request(
                f"This model's maximum context length is {limit} tokens. However, you requested {wanted or 1} output "
                f"tokens and your prompt contains at least {prompt_tokens} input tokens, for a total of at least "
                f"{prompt_tokens + (wanted or 1)} tokens. Please reduce the length of the input prompt or the number of "
                "requested output tokens.",
                "input_tokens",
            )
        if wanted is not None:
            return wanted, "length"
        return min(DEFAULT_ANSWER_TOKENS, limit - prompt_tokens), "stop"

    # The rest of the surface

    async def _models(self, request: web.Request) -> web.Response:
        models: list[tuple[str, str, str | None]] = [(self.options.model, self.options.model, None)]
        models += [(name, name, self.options.model) for name in self._loras]
        return _json({"object": "list", "data": [self._model_card(*model) for model in models]})

    def _model_card(self, model: str, root: str, parent: str | None) -> dict[str, object]:
        created = int(self._started)
        permission = {
            "id": f"modelperm-{uuid4().hex[:16]}",
            "object": "model_permission",
            "created": created,
            "allow_create_engine": False,
            "allow_sampling": True,
            "allow_logprobs": True,
            "allow_search_indices": False,
            "allow_view": True,
            "allow_fine_tuning": False,
            "organization": "*",
            "group": None,
            "is_blocking": False,
        }
        return {
            "id": model,
            "object": "model",
            "created": created,
            "owned_by": "vllm",
            "root": root,
            "parent": parent,
            "max_model_len": None if parent else self._profile.max_model_len,
            "permission": [permission],
        }

    async def _load_lora_adapter(self, request: web.Request) -> web.Response:
        name = parse_body(await request.read()).get("lora_name")
        if not isinstance(name, str) or not name:
            raise bad_request("Both 'lora_name' and 'lora_path' must be provided.")
        if name in self._loras:
            raise bad_request(f"The lora adapter '{name}' has already been loaded.")
        self._loras[name] = None
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload_lora_adapter(self, request: web.Request) -> web.Response:
        name = parse_body(await request.read()).get("lora_name")
        if name not in self._loras:
            raise RequestError(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        del self._loras[name]
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    async def _tokenize(self, request: web.Request) -> web.Response:
        ids = tokenizer.token_ids(parse_tokenize(await request.read()))
        content = {"count": len(ids), "max_model_len": self._profile.max_model_len, "tokens": ids, "token_strs": None}
        return _json(content)

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _version(self, request: web.Request) -> web.Response:
        return _json({"version": ENGINE_VERSION})

    async def _metrics_page(self, request: web.Request) -> web.Response:
        """The whole page: without the trailing slash the query is ignored."""
        return self._page(())

    async def _filtered_metrics_page(self, request: web.Request) -> web.Response:
        return self._page(request.query.getall("name[]", ()))

    def _page(self, names: Sequence[str]) -> web.Response:
        self._drive()
        return web.Response(
            body=self._metrics.render(names), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def _set_faults(self, request: web.Request) -> web.Response:
        changes = parse_body(await request.read())
        known = {entry.name for entry in fields(Faults)}
        if unknown := set(changes) - known:
            raise bad_request(f"There are no such faults: {', '.join(sorted(unknown))}.")
        try:
            self.faults = replace(self.faults, **changes)
        except ConfigurationError as error:
            raise bad_request(str(error)) from None
        return _json({name: getattr(self.faults, name) for name in sorted(known)})


class _Stream:
    """The tokens of one request, between the timer that brings them and the handler that sends them."""

    __slots__ = ("_waiter", "finish_reason", "last", "request", "tokens")

    def __init__(self, request: Request, finish_reason: str) -> None:
        self.request = request
        self.finish_reason = finish_reason
        self.tokens = 0
        self.last = 0.0
        """Virtual time of the last token."""
        self._waiter: asyncio.Future[None] | None = None

    def push(self, output: Output) -> None:
        """More tokens have come."""
        self.tokens += output.tokens
        self.last = output.time
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def more(self, than: int) -> None:
        """Return when there are more tokens than that."""
        while self.tokens <= than:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter


def _reset(request: web.Request) -> None:
    """Close the connection so that the peer sees a reset."""
    if request.transport is not None:
        connection = request.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()


def _json(content: object) -> web.Response:
    return web.Response(body=orjson.dumps(content), content_type="application/json")


async def simulate(options: Sequence[SimulatorOptions], announce: Callable[[SimulatorServer], None]) -> None:
    """Serve until SIGINT or SIGTERM. ``announce`` is called for each server once it listens."""
    servers = [SimulatorServer(each) for each in options]
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    try:
        for server in servers:
            await server.start()
            announce(server)
        await ended.wait()
    finally:
        for server in servers:
            await server.stop()
