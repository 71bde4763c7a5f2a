"""Simulated users. Each sends its questions to an OpenAI-compatible server and records the answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

from warmroute.tasks import cancel
from warmroute_lab.load.chat_client import Answer, ChatClient
from warmroute_lab.load.workload import Visit, Workload

DRAIN = 60.0
"""Seconds after the end of the load until unfinished answers are cancelled."""


@dataclass(frozen=True, slots=True)
class Record:
    """One request of the load."""

    user_id: int
    round: int
    """Counted from 1."""
    answer: Answer


@dataclass(slots=True)
class Run:
    """The results of one run so far."""

    workload: Workload
    records: list[Record] = field(default_factory=list)
    """Finished requests in order of completion."""
    on_the_fly: int = 0
    """Requests in flight. At the end of a run: cancelled requests."""


async def run(
    workload: Workload,
    base_url: str,
    *,
    api_key: str = "",
    on_progress: Callable[[Run], None] = lambda _: None,
    result: Run | None = None,
) -> Run:
    """Send the load to an OpenAI-compatible server and wait for the answers. A failed request ends no conversation.

    ``on_progress`` is called after every finished request. ``result`` is filled and returned; a caller who passes it has the
    results up to then even if the run is cancelled.
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
            await cancel(*users)
    for user in users:
        if not user.cancelled() and (error := user.exception()):
            raise error
    return result


async def _converse(
    visit: Visit, start: float, client: ChatClient, result: Run, on_progress: Callable[[Run], None]
) -> None:
    """One user's rounds: a question every ``workload.gap`` seconds, or later if the previous answer is not complete."""
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
