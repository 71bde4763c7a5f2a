"""A simulated engine on a socket: vLLM's HTTP API in front of :class:`~warmroute_lab.simulator.live_engine.LiveEngine`."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import fields, replace
from uuid import uuid4

import orjson
from aiohttp import web

from warmroute.end_signals import on_end_signal
from warmroute.errors import ConfigurationError
from warmroute_lab.simulator import tokenizer
from warmroute_lab.simulator.engine import Engine
from warmroute_lab.simulator.faults import Faults
from warmroute_lab.simulator.live_engine import LiveEngine, TokenStream
from warmroute_lab.simulator.openai import (
    Answer,
    Generation,
    RequestError,
    bad_request,
    model_card,
    parse_body,
    parse_generation,
    parse_tokenize,
    usage_of,
)
from warmroute_lab.simulator.options import SimulatorOptions
from warmroute_lab.simulator.request import Request

ENGINE_VERSION = "0.26.0"
"""The vLLM version whose responses these imitate."""
DEFAULT_ANSWER_TOKENS = 128
"""Length of an answer whose request sets no limit."""
MAX_BODY_BYTES = 256 << 20
_UNCOUNTED = frozenset(("/metrics", "/metrics/", "/health", "/ping", "/version", "/simulator/faults"))
"""Paths that ``http_requests_total`` leaves out; vLLM leaves out its own of these."""
_SLEEP_LEVELS = {"1": 1, "2": 2}


class SimulatorServer:
    """One simulated engine. ``start`` and ``stop`` may be called repeatedly: each start is a new engine process."""

    def __init__(self, options: SimulatorOptions) -> None:
        self.options = options
        self.faults = replace(options.faults)
        self._profile = options.served_profile
        self._runner: web.AppRunner | None = None
        self._port: int | None = None
        self._engines: list[LiveEngine] = []
        """The data-parallel engines."""

    @property
    def port(self) -> int:
        """The port it listens on. Raises RuntimeError before :meth:`start`."""
        if self._port is None:
            raise RuntimeError("the simulator has not been started")
        return self._port

    @property
    def name(self) -> str:
        """Sent with every response as ``x-simulator-name``. Raises RuntimeError before :meth:`start`."""
        return self.options.name or f"simulator-{self.port}"

    @property
    def url(self) -> str:
        """The base URL."""
        host = f"[{self.options.host}]" if ":" in self.options.host else self.options.host
        return f"http://{host}:{self.port}"

    @property
    def engine(self) -> Engine:
        """The first engine since the last start. Raises RuntimeError before :meth:`start`."""
        return self._started.engine

    def rank(self, number: int) -> Engine:
        """A data-parallel engine since the last start."""
        return self._engines[number].engine

    @property
    def _started(self) -> LiveEngine:
        if not self._engines:
            raise RuntimeError("the simulator has not been started")
        return self._engines[0]

    async def start(self) -> None:
        """Start a new engine and listen. Raises ConfigurationError if the address is unavailable."""
        options = self.options
        self._random = random.Random(options.seed)
        self._loras = dict.fromkeys(options.lora_modules)
        self._engines = [
            LiveEngine(
                self._profile,
                options.model,
                time_scale=options.time_scale,
                loras=bool(self._loras),
                seed=options.seed + rank,
                api_servers=options.api_servers,
                rank=rank,
            )
            for rank in range(options.data_parallel_size)
        ]
        self._asleep = False
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._answer])
        app.add_routes(self._routes())
        runner = web.AppRunner(
            app,
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=0.1,
            auto_decompress=False,  # as vLLM: a compressed body is not JSON
        )
        await runner.setup()
        site = web.TCPSite(runner, options.host, self._port or options.port)
        try:
            await site.start()
        except OSError as error:
            await runner.cleanup()
            if isinstance(error, socket.gaierror):
                raise ConfigurationError(f"--host {options.host!r}: {error.strerror}") from error
            # asyncio puts the address once more before the system's text
            why = os.strerror(error.errno) if error.errno is not None else str(error)
            raise ConfigurationError(f"cannot listen on {options.host}:{options.port} (--port): {why}") from error
        self._runner = runner
        self._port = runner.addresses[0][1]

    async def stop(self) -> None:
        """Close every connection. The next start uses the same port."""
        for live in self._engines:
            live.stop()
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    def _routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/chat/completions", self._chat),
            web.post("/v1/completions", self._completions),
            web.get("/v1/models", self._models),
            web.post("/v1/load_lora_adapter", self._load_lora_adapter),
            web.post("/v1/unload_lora_adapter", self._unload_lora_adapter),
            web.post("/tokenize", self._tokenize),
            web.post("/reset_prefix_cache", self._reset_prefix_cache),
            web.post("/sleep", self._sleep),
            web.post("/wake_up", self._wake_up),
            web.get("/is_sleeping", self._is_sleeping),
            web.get("/health", self._health),
            web.get("/ping", self._health),
            web.get("/version", self._version),
            web.get("/metrics", self._metrics_page),
            web.get("/metrics/", self._filtered_metrics_page),
            web.post("/simulator/faults", self._set_faults),
        ]

    @web.middleware
    async def _answer(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Answer with the engine's name, or with an error in vLLM's form, and count the response.

        A request without a response is not counted: the client disconnected first, or a fault prevented it.
        """
        response: web.StreamResponse
        try:
            if self._started.uptime < self.options.slow_start:
                raise RequestError(503, "The engine is starting.", "ServiceUnavailableError")
            response = await handler(request)
        except RequestError as error:
            response = web.Response(status=error.status, body=error.body, content_type="application/json")
        except web.HTTPException as error:
            if error.status not in (404, 405):
                raise
            response = web.json_response({"detail": error.reason}, status=error.status)
        except ConnectionError:  # the client left before its request was cancelled; aiohttp would log an error
            raise asyncio.CancelledError from None
        if not response.prepared:
            response.headers["x-simulator-name"] = self.name
        resource = request.match_info.route.resource
        path = resource.canonical if resource is not None else "none"
        if path not in _UNCOUNTED:
            self._started.metrics.observe_response(path, request.method, response.status)
        return response

    # Generation

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, chat=True)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, chat=False)

    async def _generate(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        body = await request.read()
        if self._asleep:
            raise RequestError(503, "The engine sleeps.", "ServiceUnavailableError")
        await self._misbehave(request)
        generation = parse_generation(body, chat=chat, default_model=self.options.model)
        adapter = self._adapter(generation.model)
        prompt_tokens = tokenizer.token_count(generation.prompt)
        output_tokens, reason = self._answer_length(generation, prompt_tokens)
        text = generation.answer(output_tokens)
        work = Request(
            _latin1(request.headers.get("x-request-id", "")) or uuid4().hex[:16],
            prompt_tokens,
            output_tokens,
            generation.hashes(text, adapter, self._profile.block_size),
            adapter,
        )
        live = self._chosen(request.headers.get("x-data-parallel-rank"))
        try:
            stream = live.open(work, reason)
        except ValueError as error:
            raise bad_request(str(error)) from None
        try:
            answer = Answer(generation, work.id, int(time.time()), reason)
            if generation.stream:
                return await self._stream(request, stream, answer, text)
            while stream.tokens < output_tokens:
                await stream.more(stream.tokens)
            usage = usage_of(prompt_tokens, output_tokens, work.cached_tokens)
            return web.Response(body=answer.whole(text, usage), content_type="application/json")
        finally:
            live.close(stream)

    async def _stream(self, request: web.Request, stream: TokenStream, answer: Answer, text: str) -> web.StreamResponse:
        headers = {"Content-Type": "text/event-stream; charset=utf-8", "x-simulator-name": self.name}
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
        """Show a fault with its probability; at most one for each request."""
        faults = self.faults
        drawn = self._random.random()
        if drawn < faults.fail_rate:
            raise RequestError(500, "Simulated failure.", "InternalServerError")
        drawn -= faults.fail_rate
        if drawn < faults.reset_rate:
            _reset(request)
            raise asyncio.CancelledError
        drawn -= faults.reset_rate
        if drawn < faults.stall_rate:
            await asyncio.Event().wait()

    def _chosen(self, rank: str | None) -> LiveEngine:
        """The data-parallel engine of this number, or the one with the fewest requests. Raises RequestError."""
        engines = self._engines
        if rank is None:
            return min(engines, key=lambda live: live.engine.pending)
        if rank not in map(str, range(len(engines))):
            raise bad_request(f"data_parallel_rank {rank} is out of range [0, {len(engines)}).")
        return engines[int(rank)]

    def _adapter(self, model: str) -> str | None:
        if model == self.options.model:
            return None
        if model in self._loras:
            return model
        raise RequestError(404, f"The model `{model}` does not exist.", "NotFoundError", "model")

    def _answer_length(self, generation: Generation, prompt_tokens: int) -> tuple[int, str]:
        """Number of tokens to generate and the finish reason. Raises RequestError if prompt and answer are too long."""
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

    # Models

    async def _models(self, request: web.Request) -> web.Response:
        base, created = self.options.model, int(self._started.started)
        cards = [model_card(base, created=created, max_model_len=self._profile.max_model_len)]
        cards += [model_card(name, created=created, parent=base) for name in self._loras]
        return _json({"object": "list", "data": cards})

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
        if not isinstance(name, str):
            raise bad_request("'lora_name' must be provided.")
        if name not in self._loras:
            raise RequestError(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        del self._loras[name]
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    async def _tokenize(self, request: web.Request) -> web.Response:
        ids = tokenizer.token_ids(parse_tokenize(await request.read()))
        content = {"count": len(ids), "max_model_len": self._profile.max_model_len, "tokens": ids, "token_strs": None}
        return _json(content)

    # The engine's cache and sleep

    async def _reset_prefix_cache(self, request: web.Request) -> web.Response:
        for live in self._engines:
            live.reset_prefix_cache()
        return web.Response()

    async def _sleep(self, request: web.Request) -> web.Response:
        """Sleep until ``/wake_up``. At both levels the KV cache is discarded, as in vLLM."""
        level = _SLEEP_LEVELS.get(request.query.get("level", "1"))
        if level is None:
            raise bad_request("level must be 1 or 2")
        self._asleep = True
        for live in self._engines:
            live.reset_prefix_cache()
            live.metrics.slept(level)
        return web.Response()

    async def _wake_up(self, request: web.Request) -> web.Response:
        self._asleep = False
        for live in self._engines:
            live.metrics.slept(0)
        return web.Response()

    async def _is_sleeping(self, request: web.Request) -> web.Response:
        return _json({"is_sleeping": self._asleep})

    # The engine's state

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _version(self, request: web.Request) -> web.Response:
        return _json({"version": ENGINE_VERSION})

    async def _metrics_page(self, request: web.Request) -> web.Response:
        """The whole page: as in vLLM, only ``/metrics/`` reads the query."""
        return self._page(())

    async def _filtered_metrics_page(self, request: web.Request) -> web.Response:
        return self._page(request.query.getall("name[]", ()))

    def _page(self, names: Sequence[str]) -> web.Response:
        for live in self._engines:
            live.catch_up()
        headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        return web.Response(body=b"".join(live.metrics.render(names) for live in self._engines), headers=headers)

    async def _set_faults(self, request: web.Request) -> web.Response:
        changes = parse_body(await request.read())
        known = {entry.name for entry in fields(Faults)}
        if unknown := set(changes) - known:
            raise bad_request(f"Unknown faults: {', '.join(sorted(unknown))}. Known: {', '.join(sorted(known))}.")
        try:
            self.faults = replace(self.faults, **changes)
        except ConfigurationError as error:
            raise bad_request(str(error)) from None
        return _json({name: getattr(self.faults, name) for name in sorted(known)})


def _reset(request: web.Request) -> None:
    """Close the connection with a TCP reset."""
    if request.transport is not None:
        connection = request.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()


def _latin1(header: str) -> str:
    """A header's text as vLLM's server reads it: each byte is a character. aiohttp reads UTF-8."""
    return header.encode("utf-8", "surrogateescape").decode("latin-1")


def _json(content: object) -> web.Response:
    return web.Response(body=orjson.dumps(content), content_type="application/json")


async def simulate(options: Sequence[SimulatorOptions], announce: Callable[[SimulatorServer], None]) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP. ``announce`` is called for each server once it listens.

    Raises ConfigurationError.
    """
    servers = [SimulatorServer(each) for each in options]
    ended = asyncio.Event()
    on_end_signal(ended.set)
    try:
        for server in servers:
            await server.start()
            announce(server)
        await ended.wait()
    finally:
        for server in servers:
            await server.stop()
