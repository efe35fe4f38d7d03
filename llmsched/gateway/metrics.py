"""Prometheus metrics of the service: the `llmsched_*` contract.

Counters and histograms are told what happens (`Observer`); gauges are read off the service when they are scraped, so
they cost nothing in between and cannot drift.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from llmsched.model.records import Usage

if TYPE_CHECKING:
    from llmsched.runtime.callbacks.delivery import Callbacks
    from llmsched.runtime.service import Service

#: vLLM's buckets for end-to-end latency, extended for long jobs. Seconds.
_VLLM = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0)
LONG = (*_VLLM, 240.0, 480.0, 960.0, 1920.0, 7680.0)
#: Queueing starts much lower.
QUEUE = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, *LONG)
#: 0.1 to 100 milliseconds.
DECISION = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1)
#: 1 millisecond, which is what timers can tell, to a second.
LAG = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0)


#: Tenants with series of their own, and the name of all others.
MOST_TENANTS = 100
OTHER = "other"


class Metrics:
    """One registry per service."""

    def __init__(self, service: Service | None = None) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self._submitted = Counter(
            "llmsched_jobs_submitted", "Jobs accepted, durable.", ["application", "class"], registry=r
        )
        self._finished = Counter(
            "llmsched_jobs_finished", "Jobs that ended, by outcome.", ["application", "outcome"], registry=r
        )
        self._completion = Histogram(
            "llmsched_job_completion_seconds",
            "From submission to completion of completed jobs.",
            ["application"],
            buckets=LONG,
            registry=r,
        )
        self._queued = Histogram(
            "llmsched_task_queue_seconds",
            "From ready to dispatched.",
            ["pool", "application"],
            buckets=QUEUE,
            registry=r,
        )
        self._ran = Histogram(
            "llmsched_task_run_seconds",
            "From dispatched to the end of the attempt.",
            ["pool", "application"],
            buckets=QUEUE,
            registry=r,
        )
        self._retries = Counter(
            "llmsched_task_retries", "Failed attempts that are repeated, by reason.", ["pool", "reason"], registry=r
        )
        self._slices = Counter(
            "llmsched_slices", "Attempts that ended at their cap of tokens; the task goes on.", ["pool"], registry=r
        )
        self._decision = Histogram(
            "llmsched_decision_seconds", "One decision, bookkeeping included.", buckets=DECISION, registry=r
        )
        self._decisions = Counter("llmsched_decisions", "Batches in which the policy was asked.", registry=r)
        self._explorations = Counter(
            "llmsched_explorations", "Picks made to learn, not because they looked best.", registry=r
        )
        self._estimate_error = Histogram(
            "llmsched_estimate_error_ratio",
            "Predicted over actual remaining time.",
            ["application"],
            buckets=(0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0),
            registry=r,
        )
        self._lag = Histogram(
            "llmsched_event_loop_lag_seconds",
            "How late the event loop comes round to what is due; sampled every 20 ms.",
            buckets=LAG,
            registry=r,
        )
        self._callbacks = Counter(
            "llmsched_callback_attempts", "Requests to callback URLs, by outcome.", ["outcome"], registry=r
        )
        self._callbacks_ended = Counter(
            "llmsched_callbacks_ended", "Callbacks that were delivered or given up.", ["state"], registry=r
        )
        self._callback_delay = Histogram(
            "llmsched_callback_delay_seconds",
            "From the job's end to the delivery of its callback.",
            buckets=QUEUE,
            registry=r,
        )
        for state in ("delivered", "given_up"):  # zeros are said: an alert on an increase needs the value before
            self._callbacks_ended.labels(state)
        self._tenants = _Names(MOST_TENANTS)
        self._tenant_jobs = Counter(
            "llmsched_tenant_jobs", "Jobs of a tenant, by what became of them.", ["tenant", "event"], registry=r
        )
        self._tenant_tokens = Counter(
            "llmsched_tenant_tokens", "Tokens of a tenant's committed stages.", ["tenant", "kind"], registry=r
        )
        self._tenant_seconds = Counter(
            "llmsched_tenant_seconds", "Seconds of a tenant's committed stages.", ["tenant", "kind"], registry=r
        )
        self._over_quota = Counter(
            "llmsched_over_quota", "Jobs refused because of a tenant's quota.", ["tenant", "quota"], registry=r
        )
        self._gauges = _Gauges(service, self._tenants)
        r.register(self._gauges)

    def watch(
        self,
        service: Service,
        callbacks: Callbacks | None = None,
        *,
        max_wait: float | None = None,
        leads: Callable[[], bool] = lambda: True,
        writes: Callable[[], bool] = lambda: True,
    ) -> None:
        """Reads its gauges from these.

        max_wait: the bound after which a job goes first, if there is one. leads: whether this gateway schedules.
        writes: whether the store takes writes.
        """
        self._gauges.leads = leads
        self._gauges.writes = writes
        self._gauges.service = service
        self._gauges.callbacks = callbacks
        self._gauges.max_wait = max_wait

    def names(self) -> set[str]:
        """Every series name the exposition can contain."""
        families = list(self.registry.collect())
        names = {f.name for f in families}
        for family in families:
            if family.type == "counter":
                names.add(f"{family.name}_total")
            if family.type == "histogram":
                names |= {f"{family.name}_bucket", f"{family.name}_sum", f"{family.name}_count"}
        return names

    def exposition(self) -> bytes:
        return generate_latest(self.registry)

    # ------------------------------------------------------------------------------------- Observer

    def job_submitted(self, application: str, job_class: str) -> None:
        self._submitted.labels(application, job_class).inc()

    def job_finished(self, application: str, outcome: str, seconds: float) -> None:
        self._finished.labels(application, outcome).inc()
        if outcome == "completed":
            self._completion.labels(application).observe(seconds)

    def task_started(self, pool: str, application: str, queued: float) -> None:
        self._queued.labels(pool, application).observe(queued)

    def task_ended(self, pool: str, application: str, ran: float) -> None:
        self._ran.labels(pool, application).observe(ran)

    def task_retried(self, pool: str, reason: str) -> None:
        self._retries.labels(pool, reason).inc()

    def task_sliced(self, pool: str) -> None:
        self._slices.labels(pool).inc()

    def used(self, usage: Usage) -> None:
        tenant = self._tenants.label(usage.tenant)
        events = {"submitted": usage.jobs, "completed": usage.completed}
        events |= {"failed": usage.failed, "cancelled": usage.cancelled}
        for event, count in events.items():
            if count:
                self._tenant_jobs.labels(tenant, event).inc(count)
        if usage.llm_seconds or usage.output_tokens or usage.prompt_tokens:
            self._tenant_tokens.labels(tenant, "prompt").inc(usage.prompt_tokens)
            self._tenant_tokens.labels(tenant, "output").inc(usage.output_tokens)
            self._tenant_seconds.labels(tenant, "llm").inc(usage.llm_seconds)
        if usage.regular_seconds:
            self._tenant_seconds.labels(tenant, "regular").inc(usage.regular_seconds)

    def over_quota(self, tenant: str, quota: str) -> None:
        self._over_quota.labels(self._tenants.label(tenant), quota).inc()

    def explored(self) -> None:
        self._explorations.inc()

    def estimated(self, application: str, ratio: float) -> None:
        self._estimate_error.labels(application).observe(ratio)

    def callback_tried(self, outcome: str) -> None:
        self._callbacks.labels(outcome).inc()

    def callback_ended(self, state: str, seconds: float) -> None:
        self._callbacks_ended.labels(state).inc()
        if state == "delivered":
            self._callback_delay.observe(seconds)

    def decided(self, seconds: float) -> None:
        self._decision.observe(seconds)
        self._decisions.inc()

    def lagged(self, seconds: float) -> None:
        """The event loop was late by so much. No part of `Observer`: it is not the service that sees it."""
        self._lag.observe(seconds)


class _Names:
    """Labels for names that somebody else makes up: the first `most` keep theirs, all later ones share `other`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: dict[str, None] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def label(self, name: str) -> str:
        if name not in self._known:
            if len(self._known) >= self._most:
                return OTHER
            self._known[name] = None
        return name


class _Gauges(Collector):
    def __init__(self, service: Service | None, tenants: _Names) -> None:
        self.service = service
        self.callbacks: Callbacks | None = None
        self.max_wait: float | None = None
        self.leads: Callable[[], bool] = lambda: True
        self.writes: Callable[[], bool] = lambda: True
        self._tenants = tenants

    def describe(self) -> Iterable[Metric]:
        return self.collect()

    def collect(self) -> Iterator[Metric]:
        active = GaugeMetricFamily("llmsched_jobs_active", "Jobs that are not finished.", labels=["application"])
        ready = GaugeMetricFamily("llmsched_ready_tasks", "Tasks that wait for a slot.", labels=["pool"])
        running = GaugeMetricFamily("llmsched_running_tasks", "Tasks that hold a slot.", labels=["executor"])
        slots = GaugeMetricFamily("llmsched_executor_slots", "Slots the executor offers.", labels=["executor"])
        up = GaugeMetricFamily("llmsched_engine_up", "1 while the engine is healthy.", labels=["executor"])
        learned = GaugeMetricFamily(
            "llmsched_profile_jobs", "Jobs the profile was learned from.", labels=["application"]
        )
        age = GaugeMetricFamily(
            "llmsched_profile_age_seconds", "Since the profile was learned.", labels=["application"]
        )
        fallback = GaugeMetricFamily(
            "llmsched_profile_fallback",
            "1 while plain means are used because the profile predicts worse.",
            labels=["application"],
        )
        oldest = GaugeMetricFamily(
            "llmsched_oldest_waiting_job_seconds",
            "Time in the system of the oldest job with a task that waits for a slot.",
            labels=["pool"],
        )
        bound = GaugeMetricFamily("llmsched_max_wait_seconds", "Time in the system after which a job goes first.")
        if self.max_wait is not None:
            bound.add_metric([], self.max_wait)
        leads = GaugeMetricFamily("llmsched_leads", "1 while this gateway schedules, 0 while another one does.")
        leads.add_metric([], float(self.leads()))
        store = GaugeMetricFamily("llmsched_store_up", "1 while the store takes writes.")
        store.add_metric([], float(self.writes()))
        owed = GaugeMetricFamily("llmsched_callbacks_owed", "Callbacks that are neither delivered nor given up.")
        if self.callbacks is not None:
            owed.add_metric([], self.callbacks.owed)
        of_tenants = GaugeMetricFamily(
            "llmsched_tenant_active_jobs", "Jobs of a tenant that are not finished.", labels=["tenant"]
        )
        if self.service is not None:
            by_label: dict[str, int] = dict.fromkeys(self._tenants, 0)
            for tenant, count in self.service.active_by_tenant.items():
                if tenant:
                    label = self._tenants.label(tenant)
                    by_label[label] = by_label.get(label, 0) + count
            for label, count in by_label.items():
                of_tenants.add_metric([label], count)
            view = self.service.scheduler.view
            # Zeros are said: a series that vanishes when its last job ends would leave its last value on a graph.
            idle = dict.fromkeys((a.name for a in self.service.applications), 0)
            for application, count in (idle | self.service.active_by_application()).items():
                active.add_metric([application], count)
            waiting = dict.fromkeys((e.pool for e in view.executors.values()), 0)
            waiting |= {pool: sum(len(s.ready) for s in stages.values()) for pool, stages in view.ready.items()}
            for pool, count in waiting.items():
                ready.add_metric([pool], count)
            now = self.service.clock.now()
            for pool in waiting:
                arrivals = (stage.job.arrived_at for stage in view.ready_stages(pool))
                oldest.add_metric([pool], max(0.0, now - min(arrivals, default=now)))
            for executor in view.executors.values():
                running.add_metric([executor.id], len(executor.running))
                slots.add_metric([executor.id], executor.slots)
            for engine in self.service.engines:
                up.add_metric([engine.id], float(engine.is_healthy))
            foresight = self.service.foresight
            for name, profile in foresight.knowledge.profiles.items():
                learned.add_metric([name], profile.jobs)
                age.add_metric([name], max(0.0, now - profile.learned_at))
                fallback.add_metric([name], float(foresight.has_drifted(name)))
        yield from (active, ready, running, slots, up, learned, age, fallback, oldest, bound, leads, store, owed)
        yield of_tenants
