"""Endpoints, models and settings of one InferencePool of a Kubernetes cluster."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import Any

from warmroute.errors import ConfigurationError
from warmroute.kubernetes.annotations import AnnotatedSettings
from warmroute.kubernetes.api import Cluster
from warmroute.kubernetes.events import MAX_MESSAGE, EventReporter
from warmroute.kubernetes.inference_pool import VERSIONS, X_GROUP, InferencePool, read_pool
from warmroute.kubernetes.informer import Backoff, Informer, T
from warmroute.kubernetes.models import models_of, priorities_of, read_model, read_objective, read_rewrite
from warmroute.kubernetes.objects import Object, Resource
from warmroute.kubernetes.pods import Pod, endpoint_names, read_pod
from warmroute.pool.endpoint import EndpointSpec
from warmroute.pool.pool import Pool
from warmroute.settings import Settings

logger = logging.getLogger(__name__)

LLM_D_GROUP = "llm-d.ai"
X_VERSION = VERSIONS[X_GROUP]
MODEL_KINDS = {
    "inferencemodels": (X_GROUP,),
    "inferencemodelrewrites": (X_GROUP, LLM_D_GROUP),
    "inferenceobjectives": (X_GROUP, LLM_D_GROUP),
}
"""API groups of each kind about models. Two of the kinds moved from the first group to the second."""


class KubernetesDiscovery:
    """Keeps a pool in sync with an InferencePool.

    ``apply`` puts changed settings into force (see :class:`~warmroute.kubernetes.annotations.AnnotatedSettings`);
    ``reloaded`` is called with whether annotations were valid. Call ``load`` and ``start`` before use. Each informer is a
    task that this object owns. The pool is synced once every kind is known, and stays so while the API server is away.
    """

    def __init__(
        self,
        cluster: Cluster,
        settings: Settings,
        pool: Pool,
        *,
        apply: Callable[[Settings], None],
        reloaded: Callable[[bool], None],
        backoff: Backoff | None = None,
    ) -> None:
        if settings.pool_name is None:
            raise ConfigurationError("--pool-name is missing: the InferencePool to serve")
        if settings.pool_group not in {None, *VERSIONS}:
            raise ConfigurationError(
                f"--pool-group must be one of {', '.join(VERSIONS)} (given: {settings.pool_group!r})"
            )
        self._cluster = cluster
        self._pool = pool
        self._name, self._namespace = settings.pool_name, settings.pool_namespace
        self._reloaded = reloaded
        self._backoff = backoff or Backoff()
        self._annotated = AnnotatedSettings(settings, apply, self._refuse)
        self._pools = self._pool_informers(VERSIONS if settings.pool_group is None else (settings.pool_group,))
        self._models = self._model_informers("inferencemodels", read_model, self._models_changed)
        self._rewrites = self._model_informers("inferencemodelrewrites", read_rewrite, self._models_changed)
        self._objectives = self._model_informers("inferenceobjectives", read_objective, self._objectives_changed)
        self._pods: Informer[Pod] | None = None
        self._served: InferencePool | None = None
        self._awaited = False
        """Whether the log says that the pool is awaited."""
        self._without_port: dict[str, str] = {}
        """The annotation of each pod that serves no port of the pool: told once."""
        self._ended: set[asyncio.Task[None]] = set()
        self._events = EventReporter(cluster, self._namespace)

    def load(self) -> None:
        """Find the cluster. Raises ConfigurationError if there is none."""
        try:
            self._cluster.find()
        except ConfigurationError as error:
            raise ConfigurationError(f"{error}; without Kubernetes use --endpoints-file FILE") from error

    async def start(self) -> None:
        """Start all informers."""
        self._events.start()
        for informer in self._named_informers():
            informer.start()

    async def stop(self) -> None:
        """Stop all informers; safe before :meth:`start` and when called again."""
        for informer in self._named_informers():
            await informer.stop()
        if self._pods is not None:
            await self._pods.stop()
        await self._events.stop()
        await asyncio.gather(*self._ended, return_exceptions=True)
        await self._cluster.close()

    def _named_informers(self) -> Iterator[Informer[Any]]:
        """All informers except the one of the pods, which starts when the pool's selector is known."""
        yield from self._pools
        yield from self._models
        yield from self._rewrites
        yield from self._objectives

    def _pool_informers(self, groups: Iterable[str]) -> list[Informer[InferencePool]]:
        selector = {"fieldSelector": f"metadata.name={self._name}"}
        resources = [Resource(group, VERSIONS[group], "inferencepools", self._namespace) for group in groups]
        return [self._informer(resource, read_pool, self._pool_changed, selector) for resource in resources]

    def _model_informers(
        self, plural: str, read: Callable[[Object], T], changed: Callable[[str | None], None]
    ) -> list[Informer[T]]:
        resources = [Resource(group, X_VERSION, plural, self._namespace) for group in MODEL_KINDS[plural]]
        return [self._informer(resource, read, changed) for resource in resources]

    def _informer(
        self,
        resource: Resource,
        read: Callable[[Object], T],
        changed: Callable[[str | None], None],
        selector: dict[str, str] | None = None,
    ) -> Informer[T]:
        return Informer(self._cluster, resource, read, changed, selector=selector or {}, backoff=self._backoff)

    # ---------------------------------------------------------------- pool

    def _pool_changed(self, _name: str | None) -> None:
        if not all(informer.settled for informer in self._pools):
            return
        found = [pool for informer in self._pools for pool in informer.objects.values() if not pool.terminating]
        if not found:
            self._pool_gone()
            return
        self._awaited = False
        pool, before = found[0], self._served
        if before is None or (before.api_version, before.selector, before.ports) != (
            pool.api_version,
            pool.selector,
            pool.ports,
        ):
            logger.info(
                "serving the InferencePool" if before is None else "the InferencePool has changed",
                extra={
                    "fields": {
                        "pool": f"{pool.namespace}/{pool.name}",
                        "version": pool.api_version,
                        "selector": pool.label_selector,
                        "ports": pool.ports,
                        "not-used": [other.api_version for other in found[1:]],
                    }
                },
            )
        self._served = pool
        changes = self._annotated.update(pool.annotations)
        if changes:
            self._reloaded(True)
        if before is None or before.selector != pool.selector:
            self._watch_pods(pool)
        elif changes or before.ports != pool.ports:  # the dialect of the engines may have changed
            self._sync()

    def _pool_gone(self) -> None:
        fields = {
            "pool": f"{self._namespace}/{self._name}",
            "kinds": [str(informer.resource) for informer in self._pools],
        }
        if self._served is None:
            if not self._awaited:
                self._awaited = True
                message = "the InferencePool cannot be found or read; not ready until it can"
                logger.warning(message, extra={"fields": fields})
            return
        self._awaited = True
        logger.warning("the InferencePool is gone; not ready until it is back", extra={"fields": fields})
        self._served = None
        self._end_pods_watch()
        self._pool.replace((), monotonic())
        self._pool.synced = False

    def _watch_pods(self, pool: InferencePool) -> None:
        """Start an informer of the pool's pods. Endpoints of the former selector stay until it has listed them."""
        self._end_pods_watch()
        pods = Resource("", "v1", "pods", self._namespace)
        self._pods = self._informer(pods, read_pod, self._pod_changed, {"labelSelector": pool.label_selector})
        self._pods.start()

    def _end_pods_watch(self) -> None:
        if self._pods is not None:
            ended = asyncio.create_task(self._pods.stop(), name="end of a watch")
            self._ended.add(ended)
            ended.add_done_callback(self._ended.discard)
            self._pods = None

    # ---------------------------------------------------------------- pods

    def _pod_changed(self, name: str | None) -> None:
        if name is None or not self._pool.synced:
            self._sync()
            return
        pods, pool = self._pods, self._served
        if pods is None or pool is None or not pods.listed:  # a late event of an informer with another selector
            return
        now = monotonic()
        pod = pods.objects.get(name)
        if pod is None:
            self._without_port.pop(name, None)
        specs = {spec.id: spec for spec in self._endpoints_of(pod, pool)} if pod is not None else {}
        for endpoint in endpoint_names(name, pool.ports):
            endpoint_id = f"{self._namespace}/{endpoint}"
            if endpoint_id in specs:
                self._pool.upsert(specs[endpoint_id], now)
            else:
                self._pool.remove(endpoint_id, now)

    def _sync(self) -> None:
        """Replace the pool's endpoints by those of all pods, once every kind is known."""
        pods, pool = self._pods, self._served
        if pods is None or pool is None or not pods.listed:
            return
        if not self._pool.synced and not all(informer.settled for informer in self._named_informers()):
            return
        self._without_port = {name: told for name, told in self._without_port.items() if name in pods.objects}
        specs: list[EndpointSpec] = []
        for pod in pods.objects.values():
            specs += self._endpoints_of(pod, pool)
        self._pool.replace(specs, monotonic())

    def _endpoints_of(self, pod: Pod, pool: InferencePool) -> Iterable[EndpointSpec]:
        """The pod's endpoints. Logs if its annotation leaves it without any."""
        if not pod.serves_no_port(pool.ports):
            self._without_port.pop(pod.name, None)
        elif self._without_port.get(pod.name) != pod.active_ports_text:
            self._without_port[pod.name] = pod.active_ports_text
            logger.warning(
                "the annotation active-ports of a pod lists none of the pool's ports; it gets no requests",
                extra={"fields": {"pod": pod.name, "listed": pod.active_ports_text[:MAX_MESSAGE], "ports": pool.ports}},
            )
        return pod.endpoints(pool.ports)

    # ---------------------------------------------------------------- models

    def _models_changed(self, name: str | None) -> None:
        models = (claim for informer in self._models for claim in informer.objects.values())
        rewrites = (claim for informer in self._rewrites for claim in informer.objects.values())
        self._pool.models.replace(*models_of(self._name, models, rewrites))
        if name is None and not self._pool.synced:
            self._sync()

    def _objectives_changed(self, name: str | None) -> None:
        objectives = (claim for informer in self._objectives for claim in informer.objects.values())
        self._pool.models.replace_objectives(priorities_of(self._name, objectives))
        if name is None and not self._pool.synced:
            self._sync()

    # ---------------------------------------------------------------- annotations

    def _refuse(self, annotation: str, reason: str) -> None:
        """Report an annotation that cannot be used, in the log and as an Event of the pool."""
        logger.warning(
            "annotation not used", extra={"fields": {"annotation": annotation, "error": reason[:MAX_MESSAGE]}}
        )
        self._reloaded(False)
        if self._served is not None:
            self._events.warn(self._served, "AnnotationNotUsed", f"{annotation}: {reason}")
