"""The figures of a run, as text in the format of LMCache's benchmark, as a table and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from warmroute_lab.load.distribution import Distribution
from warmroute_lab.load.users import Run


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of one run. Times are in seconds; rates are per second of the run."""

    qps: float
    """Requested rate."""
    requests: int
    """Complete answers."""
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
    """Share of the prompt tokens found in the engines' caches; None if the usage does not report it."""
    pods: dict[str, int]
    """Requests by engine; empty if the engines send no name."""

    @classmethod
    def of(cls, run: Run) -> Summary:
        """The figures of the complete answers of ``run``."""
        answers = [record.answer for record in run.records if record.answer.complete]
        start = min((answer.sent_at for answer in answers), default=0.0)
        end = max((answer.sent_at + answer.duration for answer in answers), default=0.0)
        elapsed = end - start or 1.0
        timed = [answer for answer in answers if answer.generation_time > 0]
        speeds = [answer.completion_tokens / answer.generation_time for answer in timed]
        reporting = [answer for answer in answers if answer.cached_tokens is not None]
        looked_up = sum(answer.prompt_tokens for answer in reporting)
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
            hit_rate=sum(answer.cached_tokens or 0 for answer in reporting) / looked_up if looked_up else None,
            pods=dict(sorted(Counter(answer.pod for answer in answers if answer.pod).items())),
        )

    def performance_block(self) -> str:
        """The summary in the exact format of LMCache's benchmark, for scripts that parse it."""
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
        """The figures for JSON, in seconds and fractions."""
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
    """The figures of one or two runs side by side; of two, also the second divided by the first.

    ``pods`` are engines to list even without a request.
    """
    grid = Table(title=title)
    grid.add_column("")
    for label, _ in columns:
        grid.add_column(label, justify="right", no_wrap=True)  # a label that is cut may look like the other one
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
    row("cache hit rate", ["unknown" if rate is None else f"{rate:.1%}" for rate in rates])
    row("requests", [str(summary.requests) for _, summary in columns])
    if any(summary.failed for _, summary in columns):
        row("failed", [str(summary.failed) for _, summary in columns])
    for pod in sorted({*pods, *(pod for _, summary in columns for pod in summary.pods)}):
        row(f"  on {pod}", [str(summary.pods.get(pod, 0)) for _, summary in columns])
    return grid
