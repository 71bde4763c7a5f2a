"""The prefix index: which engine holds which chain in its KV cache.

The checkpoints of all chains are a radix tree (https://en.wikipedia.org/wiki/Radix_tree): a :class:`_Segment` is a run of
consecutive checkpoints with the bit mask of the *holders* that have all of them. Where a chain leaves a segment, or a holder
loses a part of it, the segment is split; those in a row that one holder alone has become one. So matching and inserting a
conversation take a few steps, however long it is. A checkpoint is a hash of the prompt from its beginning: the first one of
a segment finds it, and the last one shows whether a chain has all of it.

A holder is one incarnation of one engine, by a small number: when the engine restarts, its holder is closed in O(1) and a
new one opened; the closed holder's segments are swept out one by one afterwards.

A prompt is inserted when it is sent, before its engine has accepted it. A long new tail is held as *unconfirmed*: it is
matched, but it evicts nothing until :meth:`PrefixIndex.insert` confirms it, so that prompts that the engine rejects do not
make the index forget what the engine holds.

Who holds a checkpoint holds all those before it on the chain. Insertion and eviction keep it so, because a chain is inserted
(and touched) tail first, so that an ancestor is always used more recently than its descendants, and a segment loses its last
checkpoints first. vLLM evicts in that order too, the tail of a chain before its head
(https://docs.vllm.ai/en/latest/design/prefix_caching.html).

That is so for own prompts. Of those that other pickers have sent, :mod:`warmroute.prefix.remote` keeps the new checkpoints,
without chains; one of them is forgotten as a whole. A holder holds a chain as far as the deeper of the two says. Both count
against its capacity and its share of the limit, and what was used longest ago goes first.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain as chained
from math import inf

from warmroute.prefix.chain import Chain, common_checkpoints
from warmroute.prefix.remote import PromptGrowth, RemoteCheckpoints, RemoteHolding, RemotePrompt

UNCONFIRMED_SHARE = 0.25
"""Unconfirmed bytes of a holder as a share of its capacity, and checkpoints as a share of those that it may have, at most;
beyond it the oldest are dropped. The share of checkpoints holds for own prompts and for other pickers' ones, each."""
SEGMENT_SIZE = 4
"""Checkpoints that a segment and its place at one holder count as beside its own: their memory is about 410 bytes, that of a
checkpoint 86 (tracemalloc, CPython 3.11, segments of 1 to 250 checkpoints)."""
HOLDERS_A_SLICE = 10
"""Open holders that one slice of the clean-up compares with their share."""


class _Segment:
    """Consecutive checkpoints of chains, never none."""

    __slots__ = ("before", "ends", "hashes", "mask", "start")

    def __init__(self, hashes: tuple[int, ...], ends: tuple[int, ...], start: int, before: int) -> None:
        self.hashes = hashes
        self.ends = ends
        """Positions in bytes of prompt."""
        self.start = start
        """Checkpoints of the chain before them."""
        self.before = before
        """Position at which the first of them begins."""
        self.mask = 0
        """Holders that have all of them, confirmed or not."""

    @property
    def prompt_bytes(self) -> int:
        return self.ends[-1] - self.before


class _Uses:
    """Segments of one holder in the order of their last use, and the bytes and checkpoints of all together."""

    __slots__ = ("_order", "checkpoints", "last", "prompt_bytes")

    def __init__(self) -> None:
        self.last: dict[_Segment, int] = {}
        """The number of each segment's last use."""
        self._order: OrderedDict[int, list[_Segment]] = OrderedDict()
        """By that number: the segment, or the parts into which it was split since, in the order of the chain."""
        self.checkpoints = 0
        self.prompt_bytes = 0

    def add(self, segment: _Segment, number: int) -> None:
        """The segment is here from its use ``number`` on."""
        self.checkpoints += len(segment.hashes)
        self.prompt_bytes += segment.prompt_bytes
        self.last[segment] = number
        self._order[number] = [segment]

    def touch(self, segment: _Segment, number: int) -> None:
        """The segment is used."""
        before = self.last[segment]
        parts = self._order[before]
        if len(parts) == 1:
            del self._order[before]
        else:
            parts.remove(segment)
            parts = [segment]
        self.last[segment] = number
        self._order[number] = parts

    def drop(self, segment: _Segment) -> None:
        """The segment is no longer here."""
        number = self.last.pop(segment)
        parts = self._order[number]
        parts.remove(segment)
        if not parts:
            del self._order[number]
        self.checkpoints -= len(segment.hashes)
        self.prompt_bytes -= segment.prompt_bytes

    def merge(self, segment: _Segment) -> None:
        """The segment, which was used by itself last, has become a part of another one that is here."""
        del self._order[self.last.pop(segment)]

    def split(self, segment: _Segment, rest: _Segment) -> None:
        """The segment was split: ``rest`` are its last checkpoints."""
        number = self.last.get(segment)
        if number is not None:
            self.last[rest] = number
            parts = self._order[number]
            parts.insert(parts.index(segment) + 1, rest)

    @property
    def size(self) -> int:
        """What counts against the limit: the checkpoints, and :data:`SEGMENT_SIZE` for each segment."""
        return self.checkpoints + SEGMENT_SIZE * len(self.last)

    def oldest(self) -> _Segment:
        """The segment that was used longest ago; of those used at once, the last one on the chain."""
        return next(iter(self._order.values()))[-1]

    @property
    def oldest_number(self) -> float:
        """The number of that use; infinite if there is none."""
        return next(iter(self._order), inf)


class _Holding:
    """The segments of one holder."""

    __slots__ = ("bit", "capacity", "confirmed", "remote", "unconfirmed")

    def __init__(self, bit: int, capacity: int) -> None:
        self.bit = bit
        self.capacity = capacity
        self.confirmed = _Uses()
        self.unconfirmed = _Uses()
        self.remote = RemoteHolding(bit)
        """What other pickers have sent to its engine and no own prompt went on from."""

    @property
    def prompt_bytes(self) -> int:
        """Confirmed bytes of prompt: what takes room in the engine's cache."""
        return self.confirmed.prompt_bytes + self.remote.prompt_bytes

    @property
    def size(self) -> int:
        """What counts against the limit."""
        return self.confirmed.size + self.unconfirmed.size + self.remote.size

    def confirm(self, segment: _Segment, number: int) -> None:
        """The segment is used, and confirmed if it was not."""
        if segment in self.confirmed.last:
            self.confirmed.touch(segment, number)
            return
        if segment in self.unconfirmed.last:
            self.unconfirmed.drop(segment)
        segment.mask |= self.bit
        self.confirmed.add(segment, number)


class PrefixIndex:
    """The index. Capacities are in bytes of prompt, at least 1.

    ``limit`` bounds the checkpoints of all open holders together, those of a segment counted as :data:`SEGMENT_SIZE` more,
    those of another picker's prompt as :data:`~warmroute.prefix.remote.PROMPT_SIZE` more.
    It is shared out evenly. An insertion keeps its holder within its share. What else takes a holder beyond it waits for
    :meth:`sweep`: the smaller share after :meth:`open`, unconfirmed checkpoints (half of a share at most), and segments
    that other holders split. Once :meth:`sweep` returns False, each holder has been within its share since the last
    :meth:`open`.
    """

    def __init__(self, *, limit: int = 2_000_000) -> None:
        self._limit = limit
        self._segments: dict[int, _Segment] = {}
        """By their first checkpoint."""
        self._by_end: dict[int, _Segment] = {}
        """By their last one, and by the one before: a prompt that goes on inside its last message has that one in common."""
        self._checkpoints = 0
        self._remote = RemoteCheckpoints()
        self._open: dict[int, _Holding] = {}
        self._closed: dict[int, _Holding] = {}
        self._turns: deque[_Holding] = deque()
        """The order in which :meth:`sweep` looks at holders; closed ones are dropped there."""
        self._unchecked = 0
        """Holders to look at until all have been looked at since the last one was opened."""
        self._free: list[int] = []
        self._next_holder = 0
        self.uses = 0
        """Number of the latest use of a segment by an insertion. Numbers only grow, whatever holder uses the segment."""

    # ---------------------------------------------------------------- holders

    def open(self, capacity: int) -> int:
        """A new, empty holder for an engine whose cache holds ``capacity`` bytes of prompt."""
        if self._free:
            holder = self._free.pop()
        else:
            holder = self._next_holder
            self._next_holder += 1
        holding = self._open[holder] = _Holding(1 << holder, max(1, capacity))
        self._turns.append(holding)
        self._unchecked = len(self._turns)
        return holder

    def close(self, holder: int) -> None:
        """Forget all that the holder has. O(1): its number is used again only after :meth:`sweep` has passed."""
        self._closed[holder] = self._open.pop(holder)

    def resize(self, holder: int, capacity: int) -> None:
        """The engine's cache holds ``capacity`` bytes of prompt. A smaller one takes effect at the next insertion."""
        self._open[holder].capacity = max(1, capacity)

    def capacity(self, holder: int) -> int:
        """Bytes of prompt that the holder's engine holds."""
        return self._open[holder].capacity

    @property
    def most_unconfirmed(self) -> int:
        """Unconfirmed checkpoints of one holder, at most."""
        return int(UNCONFIRMED_SHARE * self._limit / len(self._open))

    def sweep(self, budget: int = 1000) -> bool:
        """A slice of the clean-up, of up to ``budget`` segments and other pickers' prompts: take closed holders off, and let
        the next :data:`HOLDERS_A_SLICE` open ones forget what is above their share.

        True while closed holders are left, or holders that were not looked at since the last one was opened.
        """
        while self._closed and budget > 0:
            holder, holding = next(iter(self._closed.items()))
            for uses in (holding.confirmed, holding.unconfirmed):
                while uses.last and budget > 0:
                    segment, _ = uses.last.popitem()
                    self._take_off(segment, holding.bit)
                    budget -= 1
            remote = holding.remote
            while budget > 0 and (prompt := remote.oldest()) is not None:
                self._remote.drop(prompt)
                budget -= 1
            if not (holding.confirmed.last or holding.unconfirmed.last or remote.oldest()):
                del self._closed[holder]
                self._free.append(holder)
        self._shrink(budget)
        return bool(self._closed or self._unchecked)

    def _shrink(self, budget: float) -> None:
        """Let the next holders forget what is above their share, up to ``budget`` segments."""
        turns = self._turns
        for _ in range(min(HOLDERS_A_SLICE, len(turns))):
            if budget <= 0:
                return
            holding = turns[0]
            if self._open.get(holding.bit.bit_length() - 1) is not holding:
                turns.popleft()
            else:
                unconfirmed = holding.unconfirmed
                budget = self._evict(holding, unconfirmed, unconfirmed.prompt_bytes, self.most_unconfirmed, budget)
                budget = self._fit_unconfirmed_remote(holding, budget)
                budget = self._fit(holding, holding.prompt_bytes, budget)
                if budget <= 0:
                    return  # its turn goes on
                turns.rotate(-1)
            self._unchecked = max(0, self._unchecked - 1)

    # ---------------------------------------------------------------- matching

    def match(self, chain: Chain, candidates: int) -> list[tuple[int, int]]:
        """How far each candidate holds the chain.

        ``candidates`` is a mask of open holders. Returns disjoint groups ``(mask, depth)``, shallowest first: the
        holders in ``mask`` have exactly the first ``depth`` checkpoints. Holders that have none are in no group.

        The cost grows with the number of segments, not of holders; for what only other pickers have sent, with
        the checkpoints and the holders that have them.
        """
        hashes = chain.hashes
        groups = self._match(hashes, candidates)
        if not self._remote:
            return groups
        all_hold = groups[0][1] if groups and sum([mask for mask, _ in groups]) == candidates else 0
        remote = self._remote.depths(hashes, candidates, beyond=all_hold)
        return _deepest(groups, remote) if remote else groups

    def _match(self, hashes: Sequence[int], candidates: int) -> list[tuple[int, int]]:
        """The groups by the segments."""
        size = len(hashes)
        find = self._segments.get
        live, depth = candidates, 0
        groups: list[tuple[int, int]] = []
        while depth < size and (segment := find(hashes[depth])) is not None:
            holders = segment.mask & live
            if holders != live:
                if depth:
                    groups.append((live & ~holders, depth))
                live = holders
                if not live:
                    return groups
            depth += common_checkpoints(segment.hashes, hashes, depth)
        if depth and live:
            groups.append((live, depth))
        return groups

    def known(self, holder: int, chain: Chain) -> tuple[int, int]:
        """How many of the chain's first checkpoints the holder has confirmed, and has at all."""
        holding = self._open[holder]
        hashes, find = chain.hashes, self._segments.get
        accepted, depth, size = 0, 0, len(chain.hashes)
        while depth < size and (segment := find(hashes[depth])) is not None and segment.mask & holding.bit:
            depth += common_checkpoints(segment.hashes, hashes, depth)
            if segment in holding.confirmed.last:
                accepted = depth
        remote_accepted, remote_depth = self._remote.known(holding.remote, hashes)
        return max(accepted, remote_accepted), max(depth, remote_depth)

    def holders(self, hashes: Sequence[int]) -> int:
        """The mask of the open holders that have all of a chain's first checkpoints."""
        candidates = sum(holding.bit for holding in self._open.values())
        groups = self.match(Chain(hashes, (), 0), candidates)
        return groups[-1][0] if groups and groups[-1][1] == len(hashes) else 0

    def held(self, holder: int) -> tuple[int, int]:
        """Checkpoints and bytes of prompt that the holder has, unconfirmed ones included."""
        holding = self._open[holder]
        unconfirmed, remote = holding.unconfirmed, holding.remote
        checkpoints = holding.confirmed.checkpoints + unconfirmed.checkpoints
        checkpoints += remote.checkpoints
        return checkpoints, holding.prompt_bytes + unconfirmed.prompt_bytes

    def size(self, holder: int) -> int:
        """What the holder has, as it counts against the limit."""
        return self._open[holder].size

    def fill(self, holder: int) -> float:
        """Share of the holder's capacity that is used."""
        holding = self._open[holder]
        return holding.prompt_bytes / holding.capacity

    def __len__(self) -> int:
        """Distinct checkpoints in the index, including those of closed holders that are not swept yet. One that own prompts
        have and other pickers', too, counts twice."""
        return self._checkpoints + len(self._remote)

    # ---------------------------------------------------------------- changes

    def insert(self, holder: int, chain: Chain) -> int:
        """The holder's engine will have the whole chain: add what is new, touch the rest, evict what no longer fits.

        Returns how many of its checkpoints were confirmed before.
        """
        holding = self._open[holder]
        confirmed, known = holding.confirmed, 0
        path = self._grow(chain)
        for segment in reversed(path):
            if not known and segment in confirmed.last:
                known = segment.start + len(segment.hashes)
            self.uses += 1
            holding.confirm(segment, self.uses)
        self._merge(confirmed, path, holding.bit)
        known = max(known, self._remote.take_over(holding.remote, chain.hashes))
        self._fit(holding, holding.capacity)
        return known

    def insert_unconfirmed(self, holder: int, chain: Chain) -> None:
        """The holder's engine may accept the chain: match its new tail from now on, but evict nothing for it."""
        holding = self._open[holder]
        known, _ = self._remote.known(holding.remote, chain.hashes)
        if known:
            self.insert(holder, Chain(chain.hashes[:known], chain.ends[:known], chain.ends[known - 1]))
        confirmed, unconfirmed, accepted = holding.confirmed, holding.unconfirmed, False
        for segment in reversed(self._grow(chain)):
            accepted = accepted or segment in confirmed.last  # and so is all before it
            self.uses += 1
            if accepted:
                holding.confirm(segment, self.uses)
            elif segment in unconfirmed.last:
                unconfirmed.touch(segment, self.uses)
            else:
                segment.mask |= holding.bit
                unconfirmed.add(segment, self.uses)
        self._evict(holding, unconfirmed, int(UNCONFIRMED_SHARE * holding.capacity), self.most_unconfirmed)

    def insert_remote(
        self, holder: int, growths: Iterable[PromptGrowth], *, confirmed: bool
    ) -> tuple[RemotePrompt, ...]:
        """Another picker has sent prompts to the holder's engine. Unconfirmed, they are matched, but evict nothing until
        :meth:`confirm_remote`."""
        holding = self._open[holder]
        prompts = tuple([RemotePrompt(holding.remote, growth) for growth in growths])
        for prompt in prompts:
            self._remote.enter(prompt)
            if confirmed:
                self._confirm_remote(holding, prompt)
            else:
                self._remote.wait(prompt)
        if confirmed:
            self._fit(holding, holding.capacity)
        else:
            self._fit_unconfirmed_remote(holding)
        return prompts

    def confirm_remote(self, holder: int, prompts: Sequence[RemotePrompt]) -> None:
        """The holder's engine has the prompts, which may have become known to an earlier holder of that engine. Nothing to
        do for those that are decided already."""
        holding = self._open[holder]
        for prompt in prompts:
            if prompt.confirmed or not prompt.entry:
                continue
            if prompt.holding is holding.remote:
                self._remote.end_wait(prompt)
                self._confirm_remote(holding, prompt)
            else:
                self._remote.drop(prompt)
                self.insert_remote(holder, [PromptGrowth(prompt.hashes, 0, prompt.prompt_bytes)], confirmed=True)
        self._fit(holding, holding.capacity)

    def discard_remote(self, prompts: Sequence[RemotePrompt]) -> None:
        """The engine rejected the prompts. Nothing to do for those that are decided already."""
        for prompt in prompts:
            if not prompt.confirmed:
                self._remote.drop(prompt)

    def _confirm_remote(self, holding: _Holding, prompt: RemotePrompt) -> None:
        """Count the prompt as used, and then the own segment that it goes on from: the tail is forgotten first."""
        self.uses += 2
        segment = self._own(holding, prompt.goes_on_from)
        if segment is not None:
            prompt.rests_on = prompt.goes_on_from
        # Where a picker has begun to read, nothing else counts what the engine held. Later on, own prompts mostly do.
        beginning = 0 if holding.confirmed.last else prompt.held_bytes
        self._remote.confirm(prompt, self.uses - 1, unknown=beginning)
        segment = segment or self._own(holding, prompt.rests_on)
        if segment is not None:
            holding.confirmed.touch(segment, self.uses)

    def _own(self, holding: _Holding, key: int | None) -> _Segment | None:
        """The segment that ends at this checkpoint, or just after it, if the holder has confirmed it."""
        segment = None if key is None else self._by_end.get(key)
        return segment if segment is not None and segment in holding.confirmed.last else None

    def discard(self, holder: int, chain: Chain) -> None:
        """The holder's engine rejected the chain: forget its unconfirmed checkpoints."""
        holding = self._open[holder]
        self._forget_part(holding, chain, 0, (holding.unconfirmed,))

    def remove(self, holder: int, chain: Chain, depth: int, *, until: int) -> None:
        """The holder's engine did not serve the chain, whose insertion ended with use number ``until``: forget checkpoints
        after the first ``depth``, except those that a later insertion has used.

        Nothing to do once the holder is closed.
        """
        holding = self._open.get(holder)
        if holding is not None:
            self._forget_part(holding, chain, depth, (holding.confirmed, holding.unconfirmed), until)

    def _forget_part(
        self, holding: _Holding, chain: Chain, depth: int, among: Sequence[_Uses], until: float = inf
    ) -> None:
        """Forget the chain's checkpoints after the first ``depth``, as far as they are among these and were used last by use
        number ``until``."""
        for segment, start, end in self._path(chain.hashes):
            if end <= depth:
                continue
            for uses in among:
                number = uses.last.get(segment)
                if number is not None and number <= until:
                    if end - start < len(segment.hashes):
                        self._split(segment, end - start)
                    part = self._split(segment, depth - start) if start < depth else segment
                    self._forget(holding, uses, part)

    def _fit(self, holding: _Holding, most_bytes: int, budget: float = inf) -> float:
        """Forget what was used longest ago, until the holder has no more confirmed bytes than that and is within its share
        of the limit, or ``budget`` parts of segments and other pickers' prompts are forgotten. Returns the budget that is
        left."""
        confirmed, remote = holding.confirmed, holding.remote
        share = self._limit // len(self._open)
        while budget > 0:
            more_bytes, more = holding.prompt_bytes - most_bytes, holding.size - share
            if more_bytes <= 0 and more <= 0:
                break
            if remote.oldest_number < confirmed.oldest_number:
                self._remote.drop(next(iter(remote.confirmed)))
            elif confirmed.last:
                left_bytes, left = confirmed.prompt_bytes - max(0, more_bytes), confirmed.size - max(0, more)
                self._evict(holding, confirmed, left_bytes, left, 1)
            else:
                break  # unconfirmed ones only
            budget -= 1
        return budget

    def _fit_unconfirmed_remote(self, holding: _Holding, budget: float = inf) -> float:
        """Forget the oldest of other pickers' unconfirmed prompts, as :meth:`_fit` does."""
        remote = holding.remote
        while budget > 0 and remote.unconfirmed_size > self.most_unconfirmed:
            self._remote.drop(next(iter(remote.unconfirmed)))
            budget -= 1
        return budget

    def _evict(self, holding: _Holding, uses: _Uses, most_bytes: int, most: int, most_segments: float = inf) -> float:
        """Forget the checkpoints that were used longest ago, until no more bytes and no greater size than that are left, or
        parts of ``most_segments`` segments are forgotten. Returns how many more could have been."""
        while uses.last and most_segments > 0 and (uses.prompt_bytes > most_bytes or uses.size > most):
            segment = uses.oldest()
            stays = bisect_right(segment.ends, segment.ends[-1] - (uses.prompt_bytes - most_bytes))
            stays = min(stays, len(segment.hashes) - (uses.size - most))
            if stays > 0:
                segment = self._split(segment, stays)
            self._forget(holding, uses, segment)
            most_segments -= 1
        return most_segments

    def _forget(self, holding: _Holding, uses: _Uses, segment: _Segment) -> None:
        uses.drop(segment)
        self._take_off(segment, holding.bit)

    def _take_off(self, segment: _Segment, bit: int) -> None:
        """The holder does not have the segment any more; one that nobody has is dropped."""
        segment.mask &= ~bit
        if not segment.mask:
            self._unlist(segment)
            self._checkpoints -= len(segment.hashes)

    def _unlist(self, segment: _Segment) -> None:
        first = segment.hashes[0]
        if self._segments.get(first) is segment:
            del self._segments[first]
        self._unlist_end(segment)

    def _list_end(self, segment: _Segment) -> None:
        for key in segment.hashes[-2:]:
            self._by_end[key] = segment

    def _unlist_end(self, segment: _Segment) -> None:
        for key in segment.hashes[-2:]:
            if self._by_end.get(key) is segment:
                del self._by_end[key]

    # ---------------------------------------------------------------- segments

    def _path(self, hashes: Sequence[int]) -> list[tuple[_Segment, int, int]]:
        """The segments of the chain's checkpoints, each with the depths from which and to which the chain goes in it.

        Here and in :meth:`_grow` a chain ends where one of its hashes stands at another place of another chain: a collision.
        """
        path: list[tuple[_Segment, int, int]] = []
        depth, size = 0, len(hashes)
        while depth < size:
            segment = self._segments.get(hashes[depth])
            if segment is None:
                depth = self._next_known(hashes, depth + 1)
                continue
            if segment.start != depth:
                break
            start = depth
            depth += common_checkpoints(segment.hashes, hashes, start)
            path.append((segment, start, depth))
        return path

    def _grow(self, chain: Chain) -> list[_Segment]:
        """The segments of exactly the chain's checkpoints, made or split where there are none."""
        hashes, ends = chain.hashes, chain.ends
        path: list[_Segment] = []
        depth, size = 0, len(hashes)
        while depth < size:
            segment = self._segments.get(hashes[depth])
            if segment is None:
                end = self._next_known(hashes, depth + 1)
                before = ends[depth - 1] if depth else 0
                segment = _Segment(tuple(hashes[depth:end]), tuple(ends[depth:end]), depth, before)
                self._segments[hashes[depth]] = segment
                self._list_end(segment)
                self._checkpoints += end - depth
            elif segment.start != depth:
                break
            else:
                common = common_checkpoints(segment.hashes, hashes, depth)
                if common < len(segment.hashes):
                    self._split(segment, common)
            depth += len(segment.hashes)
            path.append(segment)
        return path

    def _next_known(self, hashes: Sequence[int], start: int) -> int:
        """The first place from ``start`` on at which a segment begins: after a gap that :meth:`remove` left."""
        following = hashes[start:]
        if self._segments.keys().isdisjoint(following):
            return len(hashes)
        return next(place for place, key in enumerate(following, start) if key in self._segments)

    def _merge(self, confirmed: _Uses, path: Sequence[_Segment], bit: int) -> None:
        """Make one segment of those in a row that nobody but this holder has, which has just used them all."""
        run: list[_Segment] = []
        for segment in (*path, None):
            if segment is not None and segment.mask == bit and (not run or segment.before == run[-1].ends[-1]):
                run.append(segment)  # one that begins elsewhere is of another chain: a collision
                continue
            if len(run) > 1:
                first = run[0]
                for one in run[1:]:
                    confirmed.merge(one)
                for one in run:
                    self._unlist(one)
                first.hashes = tuple(chained.from_iterable(one.hashes for one in run))
                first.ends = tuple(chained.from_iterable(one.ends for one in run))
                self._segments[first.hashes[0]] = first
                self._list_end(first)
            run = []

    def _split(self, segment: _Segment, size: int) -> _Segment:
        """Leave the first ``size`` checkpoints in the segment; returns a new one with the others, which has its holders."""
        hashes, ends = segment.hashes, segment.ends
        rest = _Segment(hashes[size:], ends[size:], segment.start + size, ends[size - 1])
        rest.mask = segment.mask
        self._segments.setdefault(rest.hashes[0], rest)  # it has one only after a collision
        segment.hashes, segment.ends = hashes[:size], ends[:size]
        self._list_end(segment)
        self._list_end(rest)
        for holder in holders_of(segment.mask):
            holding = self._open.get(holder) or self._closed[holder]
            holding.confirmed.split(segment, rest)
            holding.unconfirmed.split(segment, rest)
        return rest


def _deepest(groups: list[tuple[int, int]], remote: dict[int, int]) -> list[tuple[int, int]]:
    """The groups of holders and depths with the depths of single holders, where these are greater."""
    masks = {depth: mask for mask, depth in groups}
    for bit, further in remote.items():
        depth = next((depth for depth, mask in masks.items() if mask & bit), 0)
        if further > depth:
            if depth:
                masks[depth] ^= bit
            masks[further] = masks.get(further, 0) | bit
    return [(masks[depth], depth) for depth in sorted(masks) if masks[depth]]


def holders_of(mask: int) -> Iterator[int]:
    """The holders of a mask, lowest first."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low
