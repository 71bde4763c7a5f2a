"""Six loads that no constant of the picker was chosen with, as traces for `warmroute bench replay` and `bench standings`.

Each line is one request in the format of Mooncake's traces: its time in milliseconds, lengths in tokens, and an id for each
block of 512 prompt tokens. Equal ids are equal tokens. Take it as a pattern for a load of your own::

    python examples/traces/six_loads.py loads --seed 17
    warmroute bench standings loads/*.jsonl --strategy all --requests 1500
"""

import argparse
import json
import random
import sys
from collections.abc import Callable
from itertools import accumulate, count
from math import sin
from pathlib import Path
from typing import NamedTuple

BLOCK = 512
REQUESTS = 1500


class Request(NamedTuple):
    """One request. ``blocks`` are those that it shares with others; what is missing of its length is its own."""

    at: float
    prompt_tokens: int
    output_tokens: int
    blocks: list[int]


class Blocks:
    """Ids that no other block has."""

    def __init__(self) -> None:
        self._ids = count(1)

    def new(self, tokens: float) -> list[int]:
        return [next(self._ids) for _ in range(max(1, int(tokens) // BLOCK))]


def popular(rng: random.Random, kinds: int, exponent: float) -> Callable[[], int]:
    """Draws one of the kinds, number k with a probability of (k + 1)**-exponent (Zipf)."""
    total = list(accumulate((k + 1) ** -exponent for k in range(kinds)))
    return lambda: rng.choices(range(kinds), cum_weights=total)[0]


def questions(
    rng: random.Random,
    context: Callable[[], list[int]],
    *,
    number: int,
    per_second: float,
    length: tuple[int, int],
    answer: Callable[[], int],
) -> list[Request]:
    """Questions at random times, each of a ``length`` between these and behind a context that others ask about, too."""
    requests, at = [], 0.0
    for _ in range(number):
        at += rng.expovariate(per_second)
        blocks = context()
        prompt_tokens = len(blocks) * BLOCK + rng.randint(*length)
        requests.append(Request(at, prompt_tokens, answer(), blocks))
    return requests


def zipf_documents(rng: random.Random, blocks: Blocks) -> list[Request]:
    """Questions about 1,500 documents of 4,000 to 32,000 tokens, a few of them popular."""
    draw = popular(rng, 1500, 0.9)
    documents = [blocks.new(rng.uniform(4000, 32_000)) for _ in range(1500)]
    return questions(
        rng,
        lambda: documents[draw()],
        number=REQUESTS,
        per_second=6,
        length=(50, 400),
        answer=lambda: int(rng.lognormvariate(5, 0.6)),
    )


def fan_out(rng: random.Random, blocks: Blocks) -> list[Request]:
    """Agents that ask three to ten questions at once, and go on from their common beginning with what they learned."""
    requests: list[Request] = []
    begun = 0.0
    while len(requests) < REQUESTS:
        begun += rng.expovariate(0.4)
        context, at = blocks.new(rng.uniform(4000, 16_000)), begun
        for _ in range(rng.randint(2, 5)):
            for _ in range(rng.randint(3, 10)):
                sent = at + rng.uniform(0, 0.05)
                length = len(context) * BLOCK + rng.randint(100, 1500)
                requests.append(Request(sent, length, rng.randint(100, 600), context))
            context = context + blocks.new(rng.randint(1000, 4000))
            at += rng.uniform(8, 20)
    return requests[:REQUESTS]


def batch_and_chat(rng: random.Random, blocks: Blocks) -> list[Request]:
    """A batch of prompts that share nothing, and conversations beside it."""
    requests, at = [], 0.0
    for _ in range(REQUESTS // 2):
        at += rng.expovariate(5)
        requests.append(Request(at, rng.randint(1000, 4000), rng.randint(300, 800), []))
    system, end = blocks.new(2048), at
    while len(requests) < REQUESTS:
        at, context = rng.uniform(0, end), system
        for _ in range(rng.randint(2, 8)):
            context = context + blocks.new(rng.randint(512, 1500))
            requests.append(Request(at, len(context) * BLOCK, rng.randint(80, 400), context))
            at += rng.uniform(5, 30)
    return requests[:REQUESTS]


def few_shot(rng: random.Random, blocks: Blocks) -> list[Request]:
    """Classification: forty templates of 2,000 to 5,000 tokens, short inputs, answers of a few tokens, many a second."""
    draw = popular(rng, 40, 1.1)
    templates = [blocks.new(rng.randint(2000, 5000)) for _ in range(40)]
    return questions(
        rng,
        lambda: templates[draw()],
        number=2 * REQUESTS,
        per_second=60,
        length=(60, 500),
        answer=lambda: rng.randint(1, 8),
    )


def reasoning(rng: random.Random, blocks: Blocks) -> list[Request]:
    """Short conversations with answers of 1,500 to 8,000 tokens."""
    requests: list[Request] = []
    begun = 0.0
    while len(requests) < REQUESTS:
        begun += rng.expovariate(1)
        context, at = blocks.new(1024), begun
        for _ in range(rng.randint(1, 4)):
            answer = rng.randint(1500, 8000)
            requests.append(Request(at, len(context) * BLOCK, answer, context))
            context = context + blocks.new(answer // 8 + 600)
            at += 0.02 * answer + rng.uniform(5, 40)
    return requests[:REQUESTS]


def tenants(rng: random.Random, blocks: Blocks) -> list[Request]:
    """Sixty tenants, each with a system prompt of its own and some much larger than others; the load swells and ebbs."""
    draw = popular(rng, 60, 0.8)
    systems = [blocks.new(rng.randint(3000, 12_000)) for _ in range(60)]
    requests: list[Request] = []
    begun = 0.0
    while len(requests) < REQUESTS:
        begun += rng.expovariate(max(0.1, 0.8 * (1 + 0.9 * sin(begun / 30))))
        context, at = systems[draw()], begun
        for _ in range(rng.randint(1, 7)):
            context = context + blocks.new(rng.randint(512, 2500))
            requests.append(Request(at, len(context) * BLOCK, rng.randint(50, 500), context))
            at += rng.uniform(4, 25)
    return requests[:REQUESTS]


LOADS = (zipf_documents, fan_out, batch_and_chat, few_shot, reasoning, tenants)


def lines(requests: list[Request], blocks: Blocks) -> list[str]:
    """The requests in the order of their times, as lines of a trace."""
    written = []
    for request in sorted(requests, key=lambda request: request.at):
        size = -(-request.prompt_tokens // BLOCK)
        own = [block for _ in range(size - len(request.blocks)) for block in blocks.new(BLOCK)]
        line = {
            "timestamp": int(request.at * 1000),
            "input_length": request.prompt_tokens,
            "output_length": max(1, request.output_tokens),
            "hash_ids": [*request.blocks, *own][:size],
        }
        written.append(json.dumps(line))
    return written


def main() -> None:
    """Write the traces."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=17)
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    for load in LOADS:
        blocks = Blocks()
        requests = load(random.Random(options.seed), blocks)
        path = options.directory / f"{load.__name__}-{options.seed}.jsonl"
        path.write_text("\n".join(lines(requests, blocks)) + "\n", encoding="utf-8")
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
