"""An engine whose virtual time follows the wall clock.

One timer drives an engine. It fires at the engine's next event and lets virtual time catch up with the clock. Delays do not
accumulate, and an idle engine uses no CPU.
"""

from __future__ import annotations

import asyncio
import time
from math import ceil, inf

from warmroute_lab.simulator.engine import Engine
from warmroute_lab.simulator.metrics import MetricsPage
from warmroute_lab.simulator.profile import Profile
from warmroute_lab.simulator.request import Output, Request


class TokenStream:
    """The tokens of one request: :class:`LiveEngine` adds them, the HTTP handler sends them."""

    __slots__ = ("_waiter", "finish_reason", "last_at", "request", "tokens")

    def __init__(self, request: Request, finish_reason: str) -> None:
        self.request = request
        self.finish_reason = finish_reason
        self.tokens = 0
        """Tokens generated so far."""
        self.last_at = 0.0
        """Virtual time of the last token, in seconds."""
        self._waiter: asyncio.Future[None] | None = None

    def push(self, output: Output) -> None:
        """Add tokens and wake the handler."""
        self.tokens += output.tokens
        self.last_at = output.time
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def more(self, than: int) -> None:
        """Return when there are more than that many tokens."""
        while self.tokens <= than:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter


class LiveEngine:
    """One running engine with its metrics page and the streams of its requests."""

    def __init__(
        self,
        profile: Profile,
        model: str,
        *,
        time_scale: float,
        loras: bool,
        seed: int,
        api_servers: int = 1,
        rank: int = 0,
    ) -> None:
        """``time_scale`` is the virtual time per wall-clock time. Needs a running event loop."""
        self.engine = Engine(profile, seed=seed)
        self.started = time.time()
        """Unix time of the start, in seconds."""
        self.metrics = MetricsPage(
            self.engine,
            model,
            started=self.started,
            time_scale=time_scale,
            loras=loras,
            api_servers=api_servers,
            rank=rank,
        )
        self._scale = time_scale
        self._loop = asyncio.get_running_loop()
        self._origin = time.monotonic()
        self._streams: dict[Request, TokenStream] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due = inf

    @property
    def uptime(self) -> float:
        """Wall-clock seconds since the start."""
        return time.monotonic() - self._origin

    def open(self, request: Request, finish_reason: str) -> TokenStream:
        """Submit a request. Raises ValueError if it can never fit into the KV cache."""
        self.engine.submit(request, self._now())
        stream = self._streams[request] = TokenStream(request, finish_reason)
        self.catch_up()
        return stream

    def close(self, stream: TokenStream) -> None:
        """Forget a stream. A request that has not finished is aborted."""
        request = stream.request
        del self._streams[request]
        if stream.tokens < request.output_tokens:
            self.engine.abort(request, self._now())
            self.metrics.observe_aborted()
            self.catch_up()

    def catch_up(self) -> None:
        """Deliver the tokens that are due and set the timer for the next event."""
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
            # Event loops count in milliseconds. Without rounding up, the timer fires too early and is set again.
            delay = max(0.0, due - self._now()) / self._scale
            self._timer = self._loop.call_later(ceil(delay * 1000) / 1000, self._tick)

    def reset_prefix_cache(self) -> None:
        """Forget every prompt that no running request uses."""
        self.engine.reset_prefix_cache(self._now())

    def stop(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _now(self) -> float:
        """Virtual seconds since the start."""
        return self.uptime * self._scale

    def _tick(self) -> None:
        self._timer = None
        self.catch_up()

    def _deliver(self, output: Output) -> None:
        request = output.request
        stream = self._streams.get(request)
        if stream is None:
            return
        if stream.tokens:
            self.metrics.observe_tokens(output.tokens, output.time - stream.last_at)
        else:
            self.metrics.observe_first_token(request)
        if output.finished:
            self.metrics.observe_finished(request, stream.finish_reason)
        stream.push(output)
