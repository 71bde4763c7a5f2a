"""Prompts that other pickers have sent to engines, by their new checkpoints, without the chains that these belong to.

Another picker says which checkpoints of a prompt an engine did not hold before, and which one these go on from. A checkpoint
identifies all of the prompt before it, and an engine that holds it holds all of that. So chains are not needed: a request's
own chain says how deep each checkpoint is, and the deepest one that a holder has here says how far it holds the prompt.

That makes them cheap to enter, which every picker does with the prompts of all others; most are never asked for.
:class:`~warmroute.prefix.index.PrefixIndex` takes a prompt over when an own one with its checkpoints goes to its holder.

The bytes of a prompt move to the one that goes on from it: what was used last is forgotten last, as in the engine. The bytes
beyond the place where that one goes on stay, in proportion to the checkpoints there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from math import inf
from typing import NamedTuple

PROMPT_SIZE = 4
"""Checkpoints that a prompt counts as beside its own: its memory is about 430 bytes, that of a checkpoint 96 (tracemalloc,
CPython 3.11, prompts of 1 to 64 checkpoints)."""


class PromptGrowth(NamedTuple):
    """What a prompt adds to an engine's cache."""

    hashes: Sequence[int]
    """The last checkpoint that the engine held, if it held any, then those that it did not."""
    held_bytes: int
    """Bytes of prompt up to the first of these if the engine held that; 0: it held none."""
    new_bytes: int
    """Bytes of prompt after them."""


class RemotePrompt:
    """What another picker has said of a prompt that it sent to one engine."""

    __slots__ = (
        "_new_bytes", "confirmed", "entry", "goes_on_from", "hashes", "held_bytes", "holding", "left", "number",
        "prompt_bytes", "rests_on", "size",
    )  # fmt: skip

    def __init__(self, holding: RemoteHolding, growth: PromptGrowth) -> None:
        hashes, held_bytes, new_bytes = growth
        self.holding = holding
        self.goes_on_from = hashes[0] if held_bytes and hashes else None
        """The last checkpoint that the engine held."""
        self.hashes = hashes[1:] if held_bytes else hashes
        """Those after it."""
        self.size = len(self.hashes) + PROMPT_SIZE
        """What it counts as against the index's limit."""
        self.held_bytes = held_bytes
        """Bytes of prompt up to where it goes on."""
        self._new_bytes = self.prompt_bytes = new_bytes
        """``prompt_bytes``: bytes of prompt that count for it."""
        self.rests_on: int | None = None
        """The checkpoint of an own prompt that it goes on from, perhaps by way of other pickers' prompts."""
        self.left = 0
        """Checkpoints that are entered for it: not those that another prompt of the holder has."""
        self.number = 0
        """Number of its last use."""
        self.confirmed = False
        """Whether the engine has the prompt for certain: then it takes room in its cache."""
        self.entry: tuple[RemotePrompt, ...] = (self,)
        """What stands for a checkpoint that no other prompt has; empty once this one is forgotten."""

    def bytes_beyond(self, key: int) -> int:
        """Bytes of prompt that count for it beyond one of its checkpoints."""
        size = len(self.hashes)
        beyond = size if key == self.goes_on_from else size - 1 - self.hashes.index(key)
        return min(self.prompt_bytes, self._new_bytes * beyond // max(1, size))


class RemoteHolding:
    """The prompts of one holder."""

    __slots__ = ("bit", "checkpoints", "confirmed", "prompt_bytes", "size", "unconfirmed", "unconfirmed_size")

    def __init__(self, bit: int) -> None:
        self.bit = bit
        self.confirmed: OrderedDict[RemotePrompt, None] = OrderedDict()
        """Oldest first."""
        self.unconfirmed: OrderedDict[RemotePrompt, None] = OrderedDict()
        """Oldest first."""
        self.prompt_bytes = 0
        """Of the confirmed ones."""
        self.checkpoints = 0
        """Of all."""
        self.size = 0
        """What counts against the index's limit."""
        self.unconfirmed_size = 0
        """The part of it that is unconfirmed."""

    @property
    def oldest_number(self) -> float:
        """The number of the oldest confirmed prompt; infinite if there is none."""
        oldest = next(iter(self.confirmed), None)
        return inf if oldest is None else oldest.number

    def oldest(self) -> RemotePrompt | None:
        """The oldest confirmed prompt, else the oldest unconfirmed one."""
        return next(iter(self.confirmed or self.unconfirmed), None)


class RemoteCheckpoints:
    """The checkpoints of all holders."""

    def __init__(self) -> None:
        self._prompts: dict[int, tuple[RemotePrompt, ...]] = {}
        """The prompts that have a checkpoint, one of each holder at most."""

    def __len__(self) -> int:
        """Distinct checkpoints."""
        return len(self._prompts)

    # ---------------------------------------------------------------- lookups

    def depths(self, hashes: Sequence[int], candidates: int, *, beyond: int = 0) -> dict[int, int]:
        """How many of a chain's first checkpoints each candidate has, by the deepest one that is here, where it is more than
        ``beyond``. Candidates are a mask; the keys are single bits of it."""
        prompts = self._prompts
        depths: dict[int, int] = {}
        if prompts.keys().isdisjoint(hashes[beyond:] if beyond else hashes):
            return depths
        for depth in range(len(hashes), beyond, -1):
            for prompt in prompts.get(hashes[depth - 1], ()):
                bit = prompt.holding.bit
                if bit & candidates:
                    depths[bit] = depth
                    candidates ^= bit
            if not candidates:
                break
        return depths

    def known(self, holding: RemoteHolding, hashes: Sequence[int]) -> tuple[int, int]:
        """How many of a chain's first checkpoints the holder has confirmed, and has at all."""
        prompts = self._prompts
        if prompts.keys().isdisjoint(hashes):
            return 0, 0
        deepest = 0
        for depth in range(len(hashes), 0, -1):
            prompt = _of(holding, prompts.get(hashes[depth - 1], ()))
            if prompt is not None:
                deepest = deepest or depth
                if prompt.confirmed:
                    return depth, deepest
        return 0, deepest

    # ---------------------------------------------------------------- changes

    def enter(self, prompt: RemotePrompt) -> None:
        """Enter the new checkpoints of a prompt, but for those that its holder has here already. :meth:`wait` or
        :meth:`confirm` follows."""
        holding, prompts, entry = prompt.holding, self._prompts, prompt.entry
        enter = prompts.setdefault
        there = [key for key in prompt.hashes if enter(key, entry) is not entry]
        left = len(prompt.hashes) - len(there)
        for key in there:
            if _of(holding, prompts[key]) is None:
                prompts[key] += entry
                left += 1
        prompt.left = left
        holding.checkpoints += left
        holding.size += prompt.size

    def wait(self, prompt: RemotePrompt) -> None:
        """It is not certain yet that the engine has the prompt: it is unconfirmed until :meth:`end_wait`."""
        prompt.holding.unconfirmed[prompt] = None
        prompt.holding.unconfirmed_size += prompt.size

    def end_wait(self, prompt: RemotePrompt) -> None:
        """An unconfirmed prompt is decided. :meth:`confirm` follows if the engine has it."""
        del prompt.holding.unconfirmed[prompt]
        prompt.holding.unconfirmed_size -= prompt.size

    def confirm(self, prompt: RemotePrompt, number: int, *, unknown: int) -> None:
        """The engine has the prompt, which was used last with that number. The bytes that it goes on from count for it from
        now on, unless they are of an own prompt; ``unknown`` of them if nothing is known of them here."""
        holding = prompt.holding
        holding.confirmed[prompt] = None
        holding.prompt_bytes += prompt.prompt_bytes
        prompt.confirmed, prompt.number = True, number
        if prompt.goes_on_from is not None and prompt.rests_on is None:
            more = self._take(prompt, prompt.goes_on_from, unknown=unknown)
            prompt.prompt_bytes += more
            holding.prompt_bytes += more
        if prompt.left < len(prompt.hashes):  # an earlier one has some: two pickers have sent it, or said it twice
            for key in prompt.hashes:
                self._take(prompt, key)

    def drop(self, prompt: RemotePrompt) -> None:
        """Forget a prompt. Nothing to do if it is forgotten already."""
        if not prompt.entry:
            return
        holding, prompts = prompt.holding, self._prompts
        holding.checkpoints -= prompt.left
        holding.size -= prompt.size
        if prompt.confirmed:
            del holding.confirmed[prompt]
            holding.prompt_bytes -= prompt.prompt_bytes
        else:
            self.end_wait(prompt)
        if prompt.left:
            for key in prompt.hashes if prompt.goes_on_from is None else (prompt.goes_on_from, *prompt.hashes):
                among = prompts.get(key, ())
                if among is prompt.entry:
                    del prompts[key]
                elif prompt in among:
                    prompts[key] = _without(prompt, among)
        prompt.entry = ()  # it refers to the prompt: nothing else would free the two but garbage collection

    def take_over(self, holding: RemoteHolding, hashes: Sequence[int]) -> int:
        """Forget the holder's checkpoints of a chain, which count elsewhere from now on. Returns how many of the chain's
        first checkpoints the holder had confirmed."""
        prompts, confirmed = self._prompts, 0
        if not prompts:
            return 0
        deepest: dict[RemotePrompt, int] = {}
        for depth in [depth for depth, key in enumerate(hashes, 1) if key in prompts]:
            key = hashes[depth - 1]
            among = prompts.get(key, ())  # a chain that has it twice: a collision
            prompt = _of(holding, among)
            if prompt is None:
                continue
            if prompt.confirmed:
                confirmed = depth
            deepest[prompt] = key
            self._count_off(prompt)
            if len(among) == 1:
                del prompts[key]
            else:
                prompts[key] = _without(prompt, among)
        for prompt, key in deepest.items():
            self._keep(prompt, prompt.bytes_beyond(key))
        return confirmed

    def _take(self, prompt: RemotePrompt, key: int, *, unknown: int = 0) -> int:
        """A checkpoint belongs to a confirmed prompt from now on. Returns the bytes up to it that counted for the one that
        had it; ``unknown`` if none had it."""
        holding, among = prompt.holding, self._prompts.get(key, ())
        other = _of(holding, among)
        if other is prompt or (other is not None and not other.confirmed):
            return 0
        prompt.left += 1
        holding.checkpoints += 1
        if other is None:
            self._prompts[key] = (*among, prompt) if among else prompt.entry
            return unknown
        self._prompts[key] = (*_without(other, among), prompt) if len(among) > 1 else prompt.entry
        self._count_off(other)
        prompt.rests_on = prompt.rests_on or other.rests_on
        before = other.prompt_bytes
        self._keep(other, other.bytes_beyond(key))
        return before - other.prompt_bytes

    def _count_off(self, prompt: RemotePrompt) -> None:
        """One of its checkpoints is not entered for it any more."""
        prompt.left -= 1
        prompt.holding.checkpoints -= 1

    def _keep(self, prompt: RemotePrompt, prompt_bytes: int) -> None:
        """No more bytes than these count for the prompt. It is forgotten if it has no checkpoints."""
        prompt_bytes = prompt_bytes if prompt.left else 0
        if prompt.confirmed:
            prompt.holding.prompt_bytes -= prompt.prompt_bytes - prompt_bytes
        prompt.prompt_bytes = prompt_bytes
        if not prompt.left and prompt.confirmed:
            self.drop(prompt)


def _of(holding: RemoteHolding, among: tuple[RemotePrompt, ...]) -> RemotePrompt | None:
    """The holder's prompt among these."""
    for prompt in among:
        if prompt.holding is holding:
            return prompt
    return None


def _without(prompt: RemotePrompt, among: tuple[RemotePrompt, ...]) -> tuple[RemotePrompt, ...]:
    rest = tuple([other for other in among if other is not prompt])
    return rest[0].entry if len(rest) == 1 else rest
