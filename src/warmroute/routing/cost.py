"""The cost of sending a request to an endpoint: the time that it adds for everybody, in prefill tokens.

::

    J = tau * ( w*P + u*(1 + E + v*waiting*W + running*R*usage) + decode*R )
        + balance*m*((1 - s)*C + s*least C)/(3 + mean C)*(1 + v)/2
        + slots*n*min(S/4, max(0, R + 1 - 0.95*S)) + kv*n*max(0, usage - 0.85) + adapter + stale

============  ====================================================================================================
``n``         work of the prompt: its tokens, and what they attend to (:func:`~warmroute.pool.work.prefill_work`)
``u``         of this, what the endpoint must do: the work beyond the ``min(matched, prompt - 1)`` tokens that it holds
``m``         tokens of the prompt, at most 8,192
``P``         prefill tokens that were assigned to the endpoint and are not computed yet
``W``         requests on the endpoint that wait for their first token
``R``         requests on the endpoint that have their first token
``C``         the crowd: ``R``; and ``W``, too, while more than two wait on some endpoint
``s``         three quarters of the share of the prompt that the endpoint holds
``least C``   the least crowd among those that hold (nearly) as much of the prompt as anybody
``w``         ``1 / (1 + min W)`` over the candidates, at least 0.8: where everybody queues, some of it is sunk
``v``         ``1 / (1 + min W / 2)``: and then the cache counts, but long prompts must not all go to one endpoint
``E``         price of a new token in the cache: ``eviction * (0.05 + 0.95*fill*h)``
``fill``      share of the cache that holds prompts
``h``         hit rate: the share that the endpoint held of the prompts that it was lately given
``usage``     share of the KV cache that requests use, estimated between scrapes; at most 1, but for the KV guard
``S``         ``max_num_seqs``, the requests that the engine runs at once
``tau``       slowness of the endpoint against the pool's median
============  ====================================================================================================

With first come, first served and one token budget, a new request waits for ``P`` and brings ``u``, which delays the
requests behind it (about ``W`` of them by the time it runs) and stretches the steps of those being decoded, the more so the
more of the KV cache they use; what it adds to a full cache evicts as much, and that is asked for again as often as prompts
are found there. What is there comes back, as the next turn or as others who share the prompt: so an endpoint with more than
its share of the requests is dearer than its present work alone says, and prompts in common use are copied while that is
cheap, which it is not where everybody queues, nor needed while one that holds it has no crowd. The guards keep requests that
cost no prefill at all from piling up on one endpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

SLOTS_FROM = 0.95
"""Share of ``max_num_seqs`` from which the slot guard acts."""
SLOTS_CAP = 0.25
"""Share of ``max_num_seqs`` by which the slot guard grows at most; what is estimated to run beyond that is a queue."""
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
"""Most requests that wait anywhere while waiting requests are no crowd: a client that asks again at once finds its endpoint.
Where more wait, all that do are: by replay, a hot prefix then reaches all of a cold fleet at once, and its p99 is up to half
as high."""
BALANCE_TOKENS = 8192
"""Tokens of a prompt that ``balance`` weighs at most. Prompts in common use are seldom longer; longer ones are talks,
to which nobody else comes back. By replay: with all of a prompt's work instead, agents have a fifth more p99."""
HOLDER_SHARE = 0.75
"""How much of the crowd at an endpoint that holds the prompt does not count while another holder has less. By replay: with
0, a fleet with a hot prefix sends a dozen requests to wait for its newest copy, though others have it ready; with 1, it is
spread unevenly."""
NEARLY = 0.9
"""Share of the most that anybody holds of a prompt from which on an endpoint holds it, too."""
EMPTY_SHARE = 0.05
"""Share of the eviction price that an empty cache has: it will be full one day, and to compute at once what another
endpoint is about to hold is waste."""
HIT_WINDOW = 0.25
"""Prompt tokens over which an endpoint's hit rate is smoothed, as a share of what its cache holds."""


@dataclass(frozen=True, slots=True)
class CostConstants:
    """The constants of the cost; the settings ``cost_*`` say what each means."""

    eviction: float
    waiting: float
    running: float
    decode: float
    balance: float
    slots: float
    kv: float
    adapter: float
    stale: float


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
    """The endpoint's share of the crowd: ``balance*m*((1 - s)*C + s*least C)/(3 + mean C)*(1 + v)/2``."""
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


def eviction_price(constants: CostConstants, fill: float, hit_rate: float) -> float:
    """``E``: what a new token costs in a cache of which the share ``fill`` holds prompts, found again at ``hit_rate``."""
    return constants.eviction * (EMPTY_SHARE + (1 - EMPTY_SHARE) * fill * hit_rate)


def slots_excess(running: float, max_num_seqs: int) -> float:
    """Requests beyond those that the slot guard allows, if one more comes to ``running``; none counts beyond the cap.

    Requests that wait do not count: mostly they wait for prefill, and that is in ``P``. By replay above saturation: if they
    did, long prompts would flee from endpoints with many short requests to a few that they fill, and p99 be a fifth higher.
    """
    return min(SLOTS_CAP * max_num_seqs, max(0.0, running + 1 - SLOTS_FROM * max_num_seqs))


def saturation_weights(least_waiting: float) -> tuple[float, float]:
    """``w`` and ``v`` where every endpoint has at least so many requests waiting."""
    return max(LEAST_QUEUE_WEIGHT, 1 / (1 + least_waiting)), 1 / (1 + least_waiting / DELAY_HALVED_AT)


def crowd_of(waiting: float, running: float, *, queues: bool) -> float:
    """``C``: the requests on an endpoint that ``balance`` counts. ``queues``: more than :data:`ALONE` wait somewhere."""
    return running + waiting if queues else running


def holder_share(tokens: float, cached: float) -> float:
    """``s`` of an endpoint that holds ``cached`` of a prompt of ``tokens`` tokens."""
    return HOLDER_SHARE * cached / tokens


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
    running: float,
    mean_crowd: float,
    max_num_seqs: int,
    kv_usage: float,
    fill: float = 1.0,
    hit_rate: float = 1.0,
    tau: float = 1.0,
    queue_weight: float = 1.0,
    delay_weight: float = 1.0,
    queues: bool = False,
    share: float = 0.0,
    least_crowd: float = 0.0,
    adapter_missing: bool = False,
    stale_for: float = 0.0,
) -> CostTerms:
    """The cost of one endpoint as the module's formula has it.

    ``tokens`` are the prompt's, ``prompt``, ``uncached`` and ``pending`` are ``n``, ``u`` and ``P`` in tokens of work,
    ``waiting`` and ``running`` are ``W`` and ``R`` in requests, ``mean_crowd`` is the mean of ``C`` over all endpoints,
    ``queue_weight`` and ``delay_weight`` are ``w`` and ``v``, ``queues`` is whether more than two wait somewhere,
    ``share`` and ``least_crowd`` are ``s`` and ``least C``, ``stale_for`` seconds beyond the allowed age. The router
    computes the same for all endpoints at once (:class:`~warmroute.routing.load.Fleet`); this is the form to read and to
    test against.
    """
    return CostTerms(
        queue=tau * queue_weight * pending,
        prefill=tau * uncached * (1 + eviction_price(constants, fill, hit_rate)),
        delay=tau
        * uncached
        * (delay_weight * constants.waiting * waiting + constants.running * running * min(1.0, kv_usage)),
        decode=tau * constants.decode * running,
        balance=balance_weight(constants, mean_crowd, delay_weight)
        * min(tokens, BALANCE_TOKENS)
        * ((1 - share) * crowd_of(waiting, running, queues=queues) + share * least_crowd),
        slots=constants.slots * prompt * slots_excess(running, max_num_seqs),
        kv=constants.kv * prompt * max(0.0, kv_usage - KV_FROM),
        adapter=constants.adapter if adapter_missing else 0.0,
        stale=constants.stale * stale_for,
    )
