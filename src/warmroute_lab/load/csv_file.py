"""A CSV file with one line per request."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from warmroute.errors import ConfigurationError
from warmroute_lab.load.users import Run

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
    """Write one line per request; unknown figures are empty. Raises ConfigurationError if the file cannot be written."""
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
