"""The cost of sending a request to an endpoint: the time that it adds for everybody, in prefill tokens.

::

    J = tau * ( w*P + u*(1 + E + v*waiting*W + running*R*usage) + decode*R ) + balance*m*C/(3 + mean C)*(1 + v)/2
        + slots*n*min(S/4, max(0, T + 1 - 0.95*S)) + kv*n*max(0, usage - 0.85) + adapter + stale

============  ====================================================================================================
``n``         work of the prompt: its tokens, and what they attend to (:func:`prefill_work`)
``u``         of this, what the endpoint must do: the work beyond the ``min(matched, prompt - 1)`` tokens that it holds
``m``         tokens of the prompt, at most 8,192
``P``         prefill tokens that were assigned to the endpoint and are not computed yet
``W``         requests on the endpoint that wait for their first token
``T``, ``R``  requests on the endpoint; those that have their first token: ``R = T - W``
``C``         the crowd: ``R``, and of ``W`` what is beyond two
``w``         ``1 / (1 + min W)`` over the candidates, at least 0.8: where everybody queues, some of it is sunk
``v``         ``1 / (1 + min W / 2)``: and then the cache counts, but long prompts must not all go to one endpoint
``E``         price of a new token in the cache: ``eviction * (0.2 + 0.8*fill)``, ``fill`` the share that holds prompts
``usage``     share of the KV cache that requests use, estimated between scrapes
``S``         ``max_num_seqs``, the requests that the engine runs at once
``tau``       slowness of the endpoint against the pool's median
============  ====================================================================================================

With first come, first served and one token budget, a new request waits for ``P`` and brings ``u``, which delays the
requests behind it (about ``W`` of them by the time it runs) and stretches the steps of those being decoded, the more so the
more of the KV cache they use; what it adds to a full cache evicts as much. What is there comes back, as the next turn
or as others who share the prompt: so an endpoint with more than its share of the requests is dearer than its present work
alone says, and prompts in common use are copied while that is cheap, which it is not where everybody queues. The guards keep
requests that cost no prefill at all from piling up on one endpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

SLOTS_FROM = 0.95
"""Share of ``max_num_seqs`` from which the slot guard acts."""
SLOTS_CAP = 0.25
"""Share of ``max_num_seqs`` by which the slot guard grows at most. Who waits for a slot is in the queue, too: without a cap,
long prompts flee from endpoints with many short requests, to a few that they fill. By replay above saturation: p99 lower."""
KV_FROM = 0.85
"""KV-cache usage from which the KV guard acts."""
LEAST_QUEUE_WEIGHT = 0.8
"""``w`` goes no lower: queues of very different length help nobody. By replay above saturation: 1 costs a tenth more mean
TTFT, and with 0.65 the p99 differs by a fifth from seed to seed."""
DELAY_HALVED_AT = 2.0
"""``min W`` at which ``v`` is a half. By replay above saturation: p99 of the TTFT a third lower."""
BALANCE_FROM = 3.0
"""Mean ``C`` at which ``balance`` counts half. On an almost idle fleet a single request that runs must not drive the next
turn of its own conversation away."""
ALONE = 2
"""Waiting requests that are no crowd yet: a client that asks again at once finds its endpoint. More are, though they do not
run: by replay, a hot prefix then reaches all of a cold fleet at once, and its p99 is up to half as high."""
BALANCE_TOKENS = 8192
"""Tokens of a prompt that ``balance`` weighs at most. Prompts in common use are seldom longer; longer ones are talks,
to which nobody else comes back. By replay: with all of a prompt's work instead, agents have a fifth more p99."""
ATTENTION_SPAN = 32_768
"""Tokens at whose position attention costs as much as everything else. Attention takes ``4 * layers * width`` operations
for each pair of tokens, everything else twice the parameters for each token: 29,000 to 53,000 for dense models of 7 to 70
billion parameters."""
EMPTY_SHARE = 0.2
"""Share of the eviction price that an empty cache has: it will be full one day, and to compute at once what another
endpoint is about to hold is waste. By replay: 0 costs bursts of equal prompts 5 %, 1 costs hot prefixes 40 %."""


@dataclass(frozen=True, slots=True)
class CostConstants:
    """The constants of the cost; the settings ``cost_*`` say what each means."""

    eviction: float = 0.25
    waiting: float = 1.0
    running: float = 0.15
    decode: float = 30.0
    balance: float = 1.0
    slots: float = 1.0
    kv: float = 20.0
    adapter: float = 2000.0
    stale: float = 1000.0


@dataclass(frozen=True, slots=True)
class CostTerms:
    """One endpoint's cost, split; all in prefill tokens."""

    queue: float
    """Waiting for the work that is there: ``tau*w*P``."""
    prefill: float
    """The request's own prefill and what it evicts: ``tau*u*(1 + E)``."""
    delay: float
    """What that prefill means to the others: ``tau*u*(v*waiting*W + running*R*usage)``."""
    decode: float
    """Sharing steps with running requests: ``tau*decode*R``."""
    balance: float
    """The endpoint's share of the crowd: ``balance*m*C/(3 + mean C)*(1 + v)/2``."""
    slots: float
    """The slot guard."""
    kv: float
    """The KV guard."""
    adapter: float
    """Loading the LoRA adapter."""
    stale: float
    """Metrics older than allowed."""

    @property
    def total(self) -> float:
        """``J``."""
        work = self.queue + self.prefill + self.delay + self.decode + self.balance
        return work + self.slots + self.kv + self.adapter + self.stale


def prefill_work(tokens: float) -> float:
    """The work of computing the first ``tokens`` tokens of a prompt, in tokens at its beginning."""
    return tokens + tokens * tokens / (2 * ATTENTION_SPAN)


def eviction_price(constants: CostConstants, fill: float) -> float:
    """``E``: what a new token costs in a cache of which the share ``fill`` holds prompts."""
    return constants.eviction * (EMPTY_SHARE + (1 - EMPTY_SHARE) * fill)


def slots_excess(total: float, max_num_seqs: int) -> float:
    """Requests beyond those that the slot guard allows, if one more comes to ``total``; none counts beyond the cap."""
    return min(SLOTS_CAP * max_num_seqs, max(0.0, total + 1 - SLOTS_FROM * max_num_seqs))


def saturation_weights(least_waiting: float) -> tuple[float, float]:
    """``w`` and ``v`` where every endpoint has at least so many requests waiting."""
    return max(LEAST_QUEUE_WEIGHT, 1 / (1 + least_waiting)), 1 / (1 + least_waiting / DELAY_HALVED_AT)


def crowd_of(waiting: float, running: float) -> float:
    """``C``: the requests on an endpoint that ``balance`` counts."""
    return running + max(0.0, waiting - ALONE)


def balance_weight(constants: CostConstants, mean_crowd: float, delay_weight: float) -> float:
    """What each request of a crowd counts for with each of the prompt's ``m`` tokens."""
    return constants.balance * (1 + delay_weight) / 2 / (BALANCE_FROM + mean_crowd)


def cost_terms(
    constants: CostConstants,
    *,
    tokens: float,
    prompt: float,
    uncached: float,
    pending: float,
    waiting: float,
    total: float,
    mean_crowd: float,
    max_num_seqs: int,
    kv_usage: float,
    fill: float = 1.0,
    tau: float = 1.0,
    queue_weight: float = 1.0,
    delay_weight: float = 1.0,
    adapter_missing: bool = False,
    stale_for: float = 0.0,
) -> CostTerms:
    """The cost of one endpoint as the module's formula has it.

    ``tokens`` are the prompt's, ``prompt``, ``uncached`` and ``pending`` are ``n``, ``u`` and ``P`` in tokens of work,
    ``waiting`` and ``total`` are ``W`` and ``T`` in requests, ``mean_crowd`` is the mean of ``C`` over all endpoints,
    ``queue_weight`` and ``delay_weight`` are ``w`` and ``v``, ``stale_for`` seconds beyond the allowed age. The router
    computes the same for all endpoints at once (:class:`~warmroute.routing.load.Fleet`); this is the form to read and to
    test against.
    """
    running = max(0.0, total - waiting)
    return CostTerms(
        queue=tau * queue_weight * pending,
        prefill=tau * uncached * (1 + eviction_price(constants, fill)),
        delay=tau
        * uncached
        * (delay_weight * constants.waiting * waiting + constants.running * running * min(1.0, kv_usage)),
        decode=tau * constants.decode * running,
        balance=balance_weight(constants, mean_crowd, delay_weight)
        * min(tokens, BALANCE_TOKENS)
        * crowd_of(waiting, running),
        slots=constants.slots * prompt * slots_excess(total, max_num_seqs),
        kv=constants.kv * prompt * max(0.0, kv_usage - KV_FROM),
        adapter=constants.adapter if adapter_missing else 0.0,
        stale=constants.stale * stale_for,
    )
