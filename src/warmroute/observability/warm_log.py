"""The log line of requests that go to an endpoint which holds most of their prompt."""

from __future__ import annotations

import logging

from warmroute.observability import logs
from warmroute.routing.decision import Decision
from warmroute.routing.decision_listener import DecisionListener
from warmroute.routing.decision_record import DecisionRecord
from warmroute.routing.router import WARM_MESSAGE, Router

logger = logging.getLogger(__name__)

_CODE = getattr(Router.pick, "__code__", None)
CALLER = logs.module_path(Router.__module__) + (f":{_CODE.co_firstlineno}" if _CODE is not None else "")
"""The line names the place of the decision, where operators look for it. A compiled one has no line number."""


class WarmLog(DecisionListener):
    """Logs each decision whose reason is ``warm``."""

    def decided(self, decision: Decision, record: DecisionRecord) -> None:
        """Log it if the endpoint holds more than the threshold of the prompt."""
        if decision.reason == "warm" and logger.isEnabledFor(logging.INFO):
            ratio = f" {decision.match_ratio:.2f} > {record.warm_from / decision.prompt_tokens:.2f}"
            fields = {"request": record.request_id, "matching ratio": ratio}
            if record.trace_id:
                fields["trace"] = record.trace_id
            logs.write(logger, CALLER, WARM_MESSAGE, fields)

    def measured(self, decision: Decision) -> None:
        """Nothing is logged."""
