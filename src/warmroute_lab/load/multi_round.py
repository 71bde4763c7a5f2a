"""``warmroute bench multi-round``: users who talk to a model in rounds, each sending the whole conversation so far.

The load is that of LMCache's multi-round-qa benchmark, whose options and summary this one shares: at any time ``num_users``
users are there, each asks every ``num_users / qps`` seconds, leaves after ``num_rounds`` rounds, and another joins.
"""

from __future__ import annotations

import asyncio
import csv
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any

import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from warmroute.errors import ConfigurationError
from warmroute_lab import json_file
from warmroute_lab.load.chat_client import Answer, ChatClient

DRAIN = 60.0
"""Seconds for which answers under way at the end of the load are waited for; later ones are cancelled."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A question of a recorded conversation and how long its answer was."""

    question: str
    answer_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What the users do. Lengths of prompts are in words, which are a token each for most tokenizers."""

    num_users: int = 8
    """Users at any one time."""
    num_rounds: int = 5
    """Questions of one user."""
    qps: float = 0.5
    """Requests per second of all users together."""
    shared_system_prompt: int = 100
    """Words of the system prompt that all users share."""
    user_history_prompt: int = 2000
    """Words of context that each user has for itself."""
    answer_len: int = 100
    """``max_tokens`` of each request."""
    model: str = "/model/qwen"
    init_user_id: int = 0
    """Number of the first user; runs with different numbers share the system prompt only."""
    seconds: float | None = None
    """For how long requests are sent. None: each of ``num_users`` users asks all of its questions, and nobody else joins."""
    conversations: tuple[tuple[Turn, ...], ...] = ()
    """Recorded questions; none: synthetic ones."""

    def __post_init__(self) -> None:
        for name in ("num_users", "num_rounds", "qps", "answer_len"):
            if getattr(self, name) <= 0:
                raise ConfigurationError(f"--{name.replace('_', '-')} must be more than 0")
        if self.seconds is not None and self.seconds <= 0:
            raise ConfigurationError("--time must be more than 0")

    @property
    def gap(self) -> float:
        """Seconds between two questions of one user."""
        return self.num_users / self.qps

    @property
    def planned_requests(self) -> int:
        """Requests that are sent if the server keeps pace."""
        if self.seconds is None:
            return self.num_users * self.num_rounds
        return sum(1 for _ in self.schedule())

    def visits(self) -> Iterator[Visit]:
        """The users in the order in which they come.

        With ``seconds``, the load is even from the start on: users that would have joined before it are there already and
        begin in the middle of their rounds.
        """
        if self.seconds is None:
            for i in range(self.num_users):
                yield Visit(self.init_user_id + i + 1, i / self.qps, 0)
            return
        join_gap = self.gap * max(self.num_rounds - 1, 1) / self.num_users
        for i in itertools.count():
            joined = (i - self.num_users) * join_gap
            if joined >= self.seconds:
                return
            missed = int(-joined / self.gap) + 1 if joined < 0 else 0
            if missed < self.num_rounds:
                yield Visit(self.init_user_id + i + 1, joined + missed * self.gap, missed)

    def schedule(self) -> Iterator[tuple[float, int, int]]:
        """Earliest time, user and round of each request, if no answer takes longer than the gap."""
        for visit in self.visits():
            for i, round_index in enumerate(range(visit.first_round, self.num_rounds)):
                at = visit.first_at + i * self.gap
                if self.seconds is None or at < self.seconds:
                    yield at, visit.user_id, round_index

    def opening(self, user_id: int) -> str:
        """What stands before a user's first question: the shared system prompt and the user's own context."""
        return (
            f"Hi, here's some system prompt: {_words(self.shared_system_prompt)}."
            f"For user {user_id}, here are some other context: {_words(self.user_history_prompt)}."
        )

    def turn(self, user_id: int, round_index: int) -> Turn:
        """The question of a round, counted from 0."""
        if self.conversations:
            turns = self.conversations[user_id % len(self.conversations)]
            if round_index < len(turns):
                return turns[round_index]
        return Turn(
            f"Question {round_index + 1}: what happens next in the story, and how does it end well for everybody?"
        )

    def body(self, user_id: int, round_index: int, history: Sequence[dict[str, str]]) -> bytes:
        """The request's JSON: ``history`` ends with the question."""
        recorded = self.turn(user_id, round_index).answer_tokens
        request = {
            "max_tokens": self.answer_len if recorded is None else max(1, min(recorded, self.answer_len)),
            "messages": history,
            "model": self.model,
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0,
        }
        return orjson.dumps(request)


@dataclass(frozen=True, slots=True)
class Visit:
    """One user: when it asks first, in seconds from the start, and with which of its rounds it begins."""

    user_id: int
    first_at: float
    first_round: int


def _words(count: int) -> str:
    return " ".join(["hi"] * count)


def read_conversations(path: Path) -> tuple[tuple[Turn, ...], ...]:
    """The questions of a ShareGPT file: a JSON list of ``{"conversations": [{"from", "value", "num_tokens"?}, ...]}``.

    Conversations without a human turn are left out. Raises ConfigurationError if nothing usable is there.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        conversations = []
        for entry in entries:
            turns: list[Turn] = []
            for said in entry["conversations"]:
                if said.get("from", "human") in {"human", "user"}:
                    turns.append(Turn(str(said["value"])))
                elif turns:
                    tokens = said.get("num_tokens")
                    turns[-1] = Turn(turns[-1].question, None if tokens is None else int(tokens))
            if turns:
                conversations.append(tuple(turns))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"{path} is not a ShareGPT file: {error}") from error
    if not conversations:
        raise ConfigurationError(f"{path} has no conversation with a human turn")
    return tuple(conversations)


@dataclass(frozen=True, slots=True)
class Record:
    """One request of the load."""

    user_id: int
    round: int
    """Counted from 1."""
    answer: Answer


@dataclass(slots=True)
class Run:
    """What one run has brought so far."""

    workload: Workload
    records: list[Record] = field(default_factory=list)
    """Finished requests, in the order of their end."""
    on_the_fly: int = 0
    """Sent and not finished; at the end of a run: given up."""


async def run(
    workload: Workload,
    base_url: str,
    *,
    api_key: str = "",
    on_progress: Callable[[Run], None] = lambda _: None,
    result: Run | None = None,
) -> Run:
    """Put the load on an OpenAI-compatible server and wait for the answers; a failed request ends no conversation.

    ``on_progress`` hears of every finished request. ``result`` is filled and returned: who hands it in has what came
    until then even if this is cancelled.
    """
    result = result or Run(workload)
    async with ChatClient(base_url, api_key=api_key) as client:
        start = monotonic()
        users = [
            asyncio.create_task(_converse(visit, start, client, result, on_progress)) for visit in workload.visits()
        ]
        try:
            limit = None if workload.seconds is None else workload.seconds + DRAIN
            await asyncio.wait(users, timeout=limit)
        finally:
            for user in users:
                user.cancel()
            await asyncio.gather(*users, return_exceptions=True)
    for user in users:
        if not user.cancelled() and (error := user.exception()):
            raise error
    return result


async def _converse(
    visit: Visit, start: float, client: ChatClient, result: Run, on_progress: Callable[[Run], None]
) -> None:
    """One user's rounds: each question a gap after the one before, but not before its answer."""
    workload = result.workload
    history: list[dict[str, str]] = []
    due = start + visit.first_at
    for round_index in range(visit.first_round, workload.num_rounds):
        await asyncio.sleep(max(0.0, due - monotonic()))
        now = monotonic()
        if workload.seconds is not None and now - start >= workload.seconds:
            return
        due = now + workload.gap
        question = workload.turn(visit.user_id, round_index).question
        if not history:
            question = workload.opening(visit.user_id) + question
        history.append({"content": question, "role": "user"})
        result.on_the_fly += 1
        answer = await client.ask(workload.body(visit.user_id, round_index, history))
        result.on_the_fly -= 1
        result.records.append(Record(visit.user_id, round_index + 1, answer))
        if answer.complete:
            history.append({"content": answer.text, "role": "assistant"})
        else:
            history.pop()
        on_progress(result)


@dataclass(frozen=True, slots=True)
class Distribution:
    """Seconds: the mean and three percentiles (linear interpolation); 0 if there is nothing."""

    mean: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Distribution:
        """The distribution of ``values``."""
        if not values:
            return cls(0.0, 0.0, 0.0, 0.0)
        ordered = sorted(values)

        def percentile(fraction: float) -> float:
            position = fraction * (len(ordered) - 1)
            low = int(position)
            high = min(low + 1, len(ordered) - 1)
            return ordered[low] + (ordered[high] - ordered[low]) * (position - low)

        return cls(sum(ordered) / len(ordered), percentile(0.5), percentile(0.9), percentile(0.99))


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of one run. Times are in seconds; rates are per second of the run."""

    qps: float
    """As asked for."""
    requests: int
    """Answered completely."""
    failed: int
    on_the_fly: int
    start: float
    """Unix time at which the first request was sent."""
    end: float
    """Unix time at which the last answer was complete."""
    processing_speed: float
    """Requests answered per second."""
    input_tokens_per_second: float
    output_tokens_per_second: float
    generation_throughput: float
    """Mean over the requests of tokens per second from the first token on."""
    ttft: Distribution
    itl: Distribution
    """Inter-token latency, over all chunks of all answers."""
    hit_rate: float | None
    """Share of the prompt tokens that came from the engines' caches; None if the usage does not tell."""
    pods: dict[str, int]
    """Requests by engine; empty if the engines do not tell their names."""

    @classmethod
    def of(cls, run: Run) -> Summary:
        """The figures of the complete answers of ``run``."""
        answers = [record.answer for record in run.records if record.answer.complete]
        start = min((answer.sent_at for answer in answers), default=0.0)
        end = max((answer.sent_at + answer.duration for answer in answers), default=0.0)
        elapsed = end - start or 1.0
        timed = [answer for answer in answers if answer.generation_time > 0]
        speeds = [answer.completion_tokens / answer.generation_time for answer in timed]
        telling = [answer for answer in answers if answer.cached_tokens is not None]
        looked_up = sum(answer.prompt_tokens for answer in telling)
        return cls(
            qps=run.workload.qps,
            requests=len(answers),
            failed=len(run.records) - len(answers),
            on_the_fly=run.on_the_fly,
            start=start,
            end=end,
            processing_speed=len(answers) / elapsed,
            input_tokens_per_second=sum(answer.prompt_tokens for answer in answers) / elapsed,
            output_tokens_per_second=sum(answer.completion_tokens for answer in answers) / elapsed,
            generation_throughput=sum(speeds) / len(speeds) if speeds else 0.0,
            ttft=Distribution.of([answer.ttft for answer in answers if answer.ttft is not None]),
            itl=Distribution.of([gap for answer in answers for gap in answer.gaps]),
            hit_rate=sum(answer.cached_tokens or 0 for answer in telling) / looked_up if looked_up else None,
            pods=dict(sorted(Counter(answer.pod for answer in answers if answer.pod).items())),
        )

    def performance_block(self) -> str:
        """The summary in the words and the format of LMCache's benchmark, which scripts look for."""
        lines = (
            f"  QPS: {self.qps:.4f} reqs/s",
            f"  Processing speed: {self.processing_speed:.4f} reqs/s",
            f"  Requests on-the-fly: {self.on_the_fly}",
            f"  Input tokens per second: {self.input_tokens_per_second:.4f} tokens/s",
            f"  Output tokens per second: {self.output_tokens_per_second:.4f} tokens/s",
            f"  Average generation throughput (per request): {self.generation_throughput:.4f} tokens/req/s",
            f"  Average TTFT: {self.ttft.mean:.4f}s",
        )
        return (
            "==================== Performance summary ======================\n"
            + "\n\n".join(lines)
            + f"\n\nTime range: {self.start} - {self.end} ({self.end - self.start:.2f}s)\n"
            + "=" * 63
        )

    def figures(self) -> dict[str, Any]:
        """The figures for a JSON file; seconds and fractions."""
        return {
            "requests": self.requests,
            "failed": self.failed,
            "on_the_fly": self.on_the_fly,
            "qps": self.qps,
            "processing_speed": self.processing_speed,
            "ttft_mean": self.ttft.mean,
            "ttft_p50": self.ttft.p50,
            "ttft_p90": self.ttft.p90,
            "ttft_p99": self.ttft.p99,
            "itl_mean": self.itl.mean,
            "itl_p50": self.itl.p50,
            "itl_p99": self.itl.p99,
            "hit_rate": self.hit_rate,
            "pods": self.pods,
        }


def table(title: str, columns: Sequence[tuple[str, Summary]], pods: Sequence[str] = ()) -> Table:
    """The figures of one or two runs side by side; of two, also the second in relation to the first.

    ``pods`` are engines to list even if no request reached them.
    """
    grid = Table(title=title)
    grid.add_column("")
    for label, _ in columns:
        grid.add_column(label, justify="right")
    if len(columns) == 2:
        grid.add_column("ratio", justify="right")

    def row(label: str, texts: Sequence[str], ratio: str = "") -> None:
        grid.add_row(label, *texts, *([ratio] if len(columns) == 2 else []))

    def times(label: str, figure: Callable[[Summary], float]) -> None:
        values = [figure(summary) for _, summary in columns]
        ratio = f"{values[-1] / values[0]:.2f}" if min(values) > 0 else ""
        row(label, [f"{value * 1000:.1f} ms" if value > 0 else "-" for value in values], ratio)

    times("TTFT mean", lambda summary: summary.ttft.mean)
    times("TTFT p50", lambda summary: summary.ttft.p50)
    times("TTFT p90", lambda summary: summary.ttft.p90)
    times("TTFT p99", lambda summary: summary.ttft.p99)
    times("ITL mean", lambda summary: summary.itl.mean)
    times("ITL p99", lambda summary: summary.itl.p99)
    rates = [summary.hit_rate for _, summary in columns]
    row("cache hit rate", ["not told" if rate is None else f"{rate:.1%}" for rate in rates])
    row("requests", [str(summary.requests) for _, summary in columns])
    if any(summary.failed for _, summary in columns):
        row("failed", [str(summary.failed) for _, summary in columns])
    for pod in sorted({*pods, *(pod for _, summary in columns for pod in summary.pods)}):
        row(f"  on {pod}", [str(summary.pods.get(pod, 0)) for _, summary in columns])
    return grid


CSV_COLUMNS = (
    "base_url",
    "user_id",
    "round",
    "launch_time",
    "finish_time",
    "ttft",
    "generation_time",
    "itl_mean",
    "prompt_tokens",
    "cached_tokens",
    "generation_tokens",
    "pod",
    "status",
    "error",
)


def write_csv(path: Path, runs: Sequence[tuple[str, Run]]) -> None:
    """One line a request; empty where there is no figure. Raises ConfigurationError if the file cannot be written."""
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(CSV_COLUMNS)
            for base_url, result in runs:
                for record in result.records:
                    answer = record.answer
                    writer.writerow(
                        (
                            base_url,
                            record.user_id,
                            record.round,
                            f"{answer.sent_at:.6f}",
                            f"{answer.sent_at + answer.duration:.6f}",
                            "" if answer.ttft is None else f"{answer.ttft:.6f}",
                            f"{answer.generation_time:.6f}",
                            f"{sum(answer.gaps) / len(answer.gaps):.6f}" if answer.gaps else "",
                            answer.prompt_tokens,
                            "" if answer.cached_tokens is None else answer.cached_tokens,
                            answer.completion_tokens,
                            answer.pod,
                            answer.status,
                            answer.error,
                        )
                    )
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from error


async def run_with_progress(
    workload: Workload,
    base_url: str,
    console: Console,
    *,
    title: str,
    api_key: str = "",
    log_interval: float = 30.0,
    result: Run | None = None,
) -> Run:
    """:func:`run` with a bar on a terminal, elsewhere with a line every ``log_interval`` seconds."""
    total = workload.planned_requests
    last_line = monotonic()
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[ttft]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task(title, total=total, ttft="")

        def show(result: Run) -> None:
            nonlocal last_line
            recent = [record.answer.ttft for record in result.records[-20:] if record.answer.ttft is not None]
            ttft = f"TTFT {sum(recent) / len(recent) * 1000:.0f} ms" if recent else ""
            bar.update(task, completed=len(result.records), ttft=ttft)
            if not console.is_terminal and monotonic() - last_line >= log_interval:
                last_line = monotonic()
                about = "" if workload.seconds is None else "about "
                done = f"{title}: {len(result.records)} of {about}{total} requests, recent {ttft}"
                console.print(done, highlight=False, markup=False)

        return await run(workload, base_url, api_key=api_key, on_progress=show, result=result)


async def bench(
    workload: Workload,
    base_url: str,
    console: Console,
    *,
    compare: str = "",
    api_key: str = "",
    output: Path | None = None,
    log_interval: float = 30.0,
) -> bool:
    """The command: one run, or two in turn with ``compare``, and what is printed and written of them.

    Without a model in ``workload``, the first one that the first server names is asked for. Returns whether any request was
    answered by each server. Where it is cancelled, it still shows and writes what was answered until then.
    """
    json_file.require_place(output)
    for url in filter(None, (base_url, compare)):
        if not url.startswith(("http://", "https://")):
            raise ConfigurationError(f"a base URL begins with http:// or https://; given: {url}")
    if not workload.model:
        async with ChatClient(base_url, api_key=api_key) as client:
            workload = replace(workload, model=await client.first_model())
    runs: list[tuple[str, Run]] = []
    try:
        for url in [base_url, compare] if compare else [base_url]:
            result = Run(workload)
            runs.append((url, result))
            await run_with_progress(
                workload, url, console, title=url, api_key=api_key, log_interval=log_interval, result=result
            )
            if compare:
                console.print(f"{url}:", highlight=False)
            console.print(Summary.of(result).performance_block(), highlight=False, markup=False, soft_wrap=True)
            if failures := [record.answer.error for record in result.records if not record.answer.complete]:
                console.print(f"{len(failures)} requests failed; the first: {failures[0]}", style="red", markup=False)
            # The next server may stand before the same engines: other users find nothing of theirs in the caches.
            last = max((visit.user_id for visit in workload.visits()), default=0)
            workload = replace(workload, init_user_id=last)
    except asyncio.CancelledError:
        console.print("Interrupted; what was answered until then:")
        raise
    finally:
        columns = [(url, Summary.of(result)) for url, result in runs]
        if columns:
            console.print(table("Multi-round", columns))
        if output is not None:
            write_csv(output, runs)
            console.print(f"One line a request: {output}", highlight=False)
    if compare:
        console.print(
            "Each run had users of its own; only the shared system prompt can have been in the caches before the second."
        )
    return all(summary.requests for _, summary in columns)
