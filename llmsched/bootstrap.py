"""Puts a service together from settings: store, workers, engines (given, launched or emulated), gateway."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping
from random import Random
from types import FrameType
from typing import Any

import uvicorn

from llmsched.apps import handler_modules
from llmsched.catalogue import installed_applications
from llmsched.config import Settings
from llmsched.errors import BackendError, InvalidSetting, ProfileError
from llmsched.gateway.app import create_app
from llmsched.gateway.auth import Keys
from llmsched.gateway.context import Context, Replica
from llmsched.gateway.metrics import Metrics
from llmsched.gateway.operation_schemas import WhatIfForm
from llmsched.gateway.protocol import Protocol
from llmsched.gateway.views import callback_body
from llmsched.model.events import Event, ExecutorJoined
from llmsched.model.records import Writes
from llmsched.policies import make_policy
from llmsched.profiler import Curves, Knowledge
from llmsched.profiler.lengths import Lengths
from llmsched.reload import Reloader, Source
from llmsched.runtime.applications import Applications
from llmsched.runtime.callbacks.delivery import Callbacks, Delivery
from llmsched.runtime.clock import WallClock
from llmsched.runtime.discovery import Discovery
from llmsched.runtime.emulator.settings import read_latency_curve
from llmsched.runtime.engine import Timeouts
from llmsched.runtime.engines import Engine, Engines, EngineSpec
from llmsched.runtime.hub import Hub
from llmsched.runtime.lag import watch_lag
from llmsched.runtime.learning.fitter import FitProcess
from llmsched.runtime.learning.foresight import Foresight
from llmsched.runtime.learning.learner import Learner, Learning
from llmsched.runtime.learning.profiles import profile_files
from llmsched.runtime.memory import look_after_memory
from llmsched.runtime.numbers import Numbers
from llmsched.runtime.observer import Several
from llmsched.runtime.replicas.election import Election
from llmsched.runtime.replicas.feed import Feed
from llmsched.runtime.replicas.intake import Arrivals, Intake
from llmsched.runtime.replicas.peer import Peer
from llmsched.runtime.service import Service
from llmsched.runtime.submission import Limits
from llmsched.runtime.supervise import Supervised, emulator_command, free_port, vllm_command
from llmsched.runtime.tenants import Quotas
from llmsched.runtime.tools.handlers import HandlerRegistry, build_registry
from llmsched.runtime.tools.routed import RoutedWorkers
from llmsched.runtime.tools.workers import ProcessWorkers, WorkerPool
from llmsched.runtime.tracing.context import Tracing, Untraced, is_wanted
from llmsched.runtime.trends import Trends
from llmsched.scheduler import Backoff
from llmsched.store.journal import Journal
from llmsched.store.store import Store
from llmsched.whatif import Request

log = logging.getLogger(__name__)


async def build(
    settings: Settings, source: Source | None = None, *, tracing: Tracing | None = None, port: int | None = None
) -> Context:
    """A service that is ready to start. source: where the settings come from, to be read anew when they change.

    tracing: None: as OpenTelemetry's variables have it. port: where it listens; None: as the settings say.

    Raises InvalidSetting or BackendError (database).
    """
    curve = read_latency_curve(settings.latency)
    knowledge = Knowledge(curves=Curves(default=curve))
    policy_options = settings.policy_options
    make_policy(settings.policy, knowledge=knowledge, **policy_options)
    lengths = _lengths(settings)
    if settings.profiles is not None:
        profile_files(settings.profiles)
    tracing = tracing or tracing_of(os.environ)
    registry = build_registry(settings.handlers, applications=handler_modules(), tools=settings.http_tools())
    pools = {"cpu": settings.workers, **settings.worker_pools}
    if settings.ray is not None:
        pools = {pool: slots for pool, slots in pools.items() if pool not in settings.ray_pools}
    store = await Store.open(settings.store)
    metrics = Metrics()
    clock = WallClock()
    trends = Trends(clock.now, settings.seed)
    applications = Applications(store)
    foresight = Foresight(knowledge, speed=settings.speed, observer=metrics)
    learner = Learner(
        knowledge,
        applications,
        store,
        FitProcess(settings.store, curve),
        clock,
        settings=Learning(settings.learn, settings.learn_every_jobs, settings.learn_every_s, settings.learn_from_jobs),
        folder=settings.profiles,
        on_learned=foresight.learned,
    )
    if not store.is_shared:
        try:
            await store.acquire_service_lock()
            await applications.load(installed_applications())
            await learner.restore()
        except BaseException:
            await store.close()
            raise

    def committed(writes: Writes) -> None:
        if lease is None or lease.epoch is not None:  # what others write, the leader tells
            service.committed(writes)
            callbacks.committed(writes)

    def engines(post: Callable[[Event], None]) -> Engines:
        timeouts = Timeouts(
            settings.connect_timeout, settings.first_token_timeout, settings.token_timeout, settings.request_timeout
        )
        return Engines(post, clock, timeouts=timeouts, interval=settings.probe_interval, seed=settings.seed)

    journal = Journal(store, committed)
    feed = Feed()
    arrivals = Arrivals(store, lambda ids: service.take_up(ids))
    lease = store.lease(_advertised(settings, port), settings.lease, arrivals.look) if store.is_shared else None
    numbers = Numbers(None if lease is None else lambda: lease.number)
    limits = Limits(
        active_jobs=settings.max_active_jobs,
        tick_ms=settings.tick_ms,
        task_timeout=settings.task_timeout,
        retention=None if settings.retention_days is None else settings.retention_days * 86_400,
        observed_idle=settings.observed_idle,
    )
    callbacks = Callbacks(
        store, journal, clock, settings.secrets(), callback_body, metrics, settings=_delivery(settings), random=Random()
    )
    service = Service(
        policy=settings.policy,
        policy_options=policy_options,
        lengths=lengths,
        store=store,
        journal=journal,
        applications=applications,
        workers=_workers(settings, registry, pools, lambda event: service.post(event)),
        handlers=registry,
        clock=clock,
        hub=Hub(tap=feed.publish),
        observer=Several(metrics, trends),
        foresight=foresight,
        learner=learner,
        limits=limits,
        backoff=Backoff(settings.backoff_first, settings.backoff_most),
        engines=engines,
        speed=settings.speed,
        seed=settings.seed,
        tracing=tracing,
        quotas=Quotas(settings.quotas()),
        deadlines=settings.deadline_admission,
        numbers=numbers,
    )
    fleet = Fleet(settings, service)

    def running(engine: str) -> int:
        executor = service.scheduler.view.executors.get(engine)
        return 0 if executor is None else len(executor.running)

    discovery = Discovery(service.engines, running, interval=settings.discovery_interval)
    discovery.use(settings.wanted_engines())

    keys = Keys(settings.tenants(), settings.admins)
    chores: list[asyncio.Task[None]] = []

    def whatif_request(form: WhatIfForm, now: float) -> dict[str, Any]:
        return _whatif_request(settings, service, form, now)

    def apply(new: Settings) -> None:
        wanted, tenants, quotas = new.wanted_engines(), new.tenants(), new.quotas()
        discovery.use(wanted)
        keys.configure(tenants, new.admins)
        service.quotas.use(quotas)
        service.use_weights(new.tenant_weights)

    reloader = None if source is None else Reloader(source, settings, apply)

    async def lead() -> None:
        await callbacks.start()
        await service.start({pool: slots for pool, slots in pools.items() if slots})
        await discovery.begin()
        fleet.start()
        chores.append(asyncio.create_task(discovery.run(), name="discovery"))

    async def rise(epoch: int) -> None:
        store.lead(epoch)
        await applications.load(installed_applications())
        await learner.restore()
        await lead()
        chores.append(asyncio.create_task(arrivals.run(), name="arrivals"))
        service.hub.lapse()

    replica = None
    if lease is not None:
        election = Election(lease, rise=rise, active_jobs=lambda: service.active_jobs, fall=lambda e: service.fail(e))
        peer = Peer(lambda: election.leader, service.hub, patience=settings.lease)
        intake = Intake(store, journal, applications, clock, numbers, metrics, limits, election.known_jobs)
        replica = Replica(election, intake, peer, feed, lease.secret)

    async def start() -> None:
        keys.know(await store.keys())
        if replica is None:
            await lead()
        else:
            await replica.election.start()
            chores.append(asyncio.create_task(replica.peer.follow(), name="follow"))
        if reloader is not None:
            chores.append(asyncio.create_task(reloader.run(), name="reload"))
        memory = look_after_memory(lambda: service.active_jobs, lambda: numbers.last)
        chores.append(asyncio.create_task(memory, name="memory"))
        chores.append(asyncio.create_task(watch_lag(metrics.lagged), name="lag"))
        chores.append(asyncio.create_task(trends.watch(lambda: service.scheduler.view), name="trends"))
        chores.append(asyncio.create_task(keys.follow(store.keys), name="keys"))

    async def stop() -> None:
        if replica is not None:
            await replica.election.hold()
        for task in chores:
            task.cancel()
        await context.whatifs.stop()
        await service.stop(settings.grace)
        await fleet.stop()
        await callbacks.stop()
        await asyncio.to_thread(tracing.close)
        await journal.close()
        if replica is not None:
            await replica.peer.close()
            await replica.election.stop()
        await store.close()

    context = Context(
        service=service,
        store=store,
        journal=journal,
        metrics=metrics,
        trends=trends,
        whatif_request=whatif_request,
        callbacks=callbacks,
        keys=keys,
        start=start,
        stop=stop,
        reload=None if reloader is None else reloader.reload,
        max_body=int(settings.max_body_mb * 1024 * 1024),
        ui=settings.ui,
        replica=replica,
    )
    metrics.watch(
        service,
        callbacks,
        max_wait=settings.max_wait,
        leads=lambda: context.leads,
        writes=lambda: journal.healthy,
    )
    return context


def _advertised(settings: Settings, port: int | None) -> str:
    """Where other gateways reach this one: as the settings say, or else at the address it listens on."""
    if settings.advertise is not None:
        return settings.advertise
    host = settings.host
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port if port is None else port}"


def _whatif_request(settings: Settings, service: Service, form: WhatIfForm, now: float) -> dict[str, Any]:
    """The machines are those of now; engines that are down or drained count, for they were there."""
    engines = [engine for engine in service.engines if engine.spec.pool == "llm"] or list(service.engines)
    workers = {"cpu": settings.workers, **settings.worker_pools}
    return Request(
        store=settings.store,
        policies=",".join(form.policies),
        since=now - form.last_s,
        until=now,
        curve=read_latency_curve(settings.latency).to_json(),
        jobs=form.jobs,
        engines=[engine.slots for engine in engines] or None,
        workers={pool: slots for pool, slots in workers.items() if slots},
        max_wait=settings.max_wait,
        tenants=settings.tenant_weights,
    ).to_json()


def tracing_of(environment: Mapping[str, str]) -> Tracing:
    """Traces, if OpenTelemetry's variables ask for them. Raises InvalidSetting where they cannot be made."""
    if not is_wanted(environment):
        return Untraced()
    try:
        from llmsched.runtime.tracing.spans import from_environment  # 0.1 s, and an extra
    except ModuleNotFoundError as error:
        raise InvalidSetting(
            f"OTEL_* variables ask for traces, and {error.name} is not installed; install llmsched[otel], or set"
            " OTEL_SDK_DISABLED=true",
            field="OTEL_TRACES_EXPORTER",
        ) from None
    return from_environment(environment)


def _delivery(settings: Settings) -> Delivery:
    return Delivery(
        attempts=settings.callback_attempts,
        age=settings.callback_age,
        timeout=settings.callback_timeout,
        backoff_first=settings.callback_backoff_first,
        backoff_most=settings.callback_backoff_most,
        allow_private=settings.callback_private,
    )


def _workers(
    settings: Settings, registry: HandlerRegistry, pools: Mapping[str, int], post: Callable[[Event], None]
) -> WorkerPool:
    """What runs regular tasks: processes here, those of `pools`, and a Ray cluster if wanted. Raises InvalidSetting."""
    here = ProcessWorkers(registry, max(1, sum(pools.values())), memory_mib=settings.worker_memory_mb)
    if settings.ray is None:
        return here
    from llmsched.runtime.tools.ray_workers import RayWorkers  # an extra, and a second of imports

    def joined(pool: str, slots: int) -> None:
        post(ExecutorJoined(f"workers-{pool}", pool, slots))

    there = RayWorkers(registry, settings.ray, settings.ray_pools, joined)
    return RoutedWorkers(here, there, there.pools)


def _lengths(settings: Settings) -> Lengths | None:
    """The model of answer lengths that the settings name. Raises InvalidSetting."""
    if settings.ranker is None:
        return None
    try:
        lengths = Lengths.load(str(settings.ranker))
    except ProfileError as error:
        raise InvalidSetting(f"ranker: {error}", field="ranker") from None
    if "encoder" in lengths.about:
        said = {"ranker": str(settings.ranker)}
        log.warning("the ranker goes by an encoder, which the service does not ask: all calls tie", extra=said)
    return lengths


class Fleet:
    """The engines that a service starts itself, as processes that end with it."""

    def __init__(self, settings: Settings, service: Service) -> None:
        self._settings = settings
        self._service = service
        self._processes: list[Supervised] = []

    def start(self) -> None:
        settings, engines = self._settings, self._service.engines
        for number, model in enumerate(settings.launch, 1):
            port = free_port()
            command = vllm_command(
                model,
                port,
                max_num_seqs=settings.max_batch,
                python=str(settings.launch_python) if settings.launch_python else None,
                extra_args=settings.launch_args,
            )
            name = f"vllm-{number}"
            launched = engines.add(EngineSpec(f"http://127.0.0.1:{port}", slots=settings.max_batch, name=name))
            self._supervise(name, command, [launched], ready=launched.client.alive)
        if settings.emulate:
            ports = _port_range(settings.emulate)
            command = emulator_command(
                settings.emulate,
                port=ports,
                latency=settings.latency,
                max_batch=settings.max_batch,
                speed=settings.speed,
                script=settings.script,
            )
            emulated = [
                EngineSpec(f"http://127.0.0.1:{ports + k}", slots=settings.max_batch, name=f"emulated-{k + 1}")
                for k in range(settings.emulate)
            ]
            self._supervise("emulator", command, [engines.add(e) for e in emulated], announcements=len(emulated))

    def _supervise(
        self,
        name: str,
        command: list[str],
        engines: list[Engine],
        *,
        announcements: int = 0,
        ready: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        def up(_: object) -> None:
            for engine in engines:
                engine.look(self._service.clock)

        process = Supervised(
            name, command, random=Random(self._settings.seed), announcements=announcements, ready=ready, on_up=up
        )
        process.start()
        self._processes.append(process)

    async def stop(self) -> None:
        await asyncio.gather(*(p.stop(2.0) for p in self._processes))


def _port_range(count: int) -> int:
    """The first of `count` successive ports nobody listens on right now."""
    for _ in range(50):
        first = free_port()
        if first + count > 65_535:
            continue
        try:
            for port in range(first, first + count):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return first
    raise InvalidSetting(f"there are no {count} free ports in a row on this machine; lower emulate")


class Server(uvicorn.Server):
    """Uvicorn that says where it listens, and that ends event streams before it waits for their clients.

    announce: called with the base URL once requests are answered.
    """

    def __init__(self, config: uvicorn.Config, context: Context, announce: Callable[[str], None]) -> None:
        super().__init__(config)
        self._context = context
        self._announce = announce
        self._loop = asyncio.get_running_loop()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        port = self.servers[0].sockets[0].getsockname()[1]
        self._announce(f"http://{self.config.host}:{port}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A first signal stops the service in order; more of them change nothing, for stopping is bounded by `grace`.

        Not uvicorn's own: it raises the signal again at the end, which turns a clean exit into a death.
        """
        if not self.should_exit:
            self.should_exit = True
            self._context.service.is_stopping = True
            self._loop.call_soon_threadsafe(self._context.service.hub.close)

    async def watch(self) -> None:
        """Ends the server when the service has failed."""
        await self._context.service.failed.wait()
        self.should_exit = True


async def serve(settings: Settings, announce: Callable[[str], None], source: Source | None = None) -> None:
    """Runs the service until SIGTERM or SIGINT; SIGHUP reads the settings of `source` anew.

    Raises InvalidSetting or BackendError where it cannot start, BackendError where it could not go on.
    """
    listener = _listener(settings.host, settings.port)
    context = await build(settings, source, port=listener.getsockname()[1])
    if context.reload is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, context.reload)
    config = uvicorn.Config(
        create_app(context),
        host=settings.host,
        http=Protocol,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=max(1, int(settings.grace)),
        timeout_keep_alive=75,
        backlog=2048,
    )
    server = Server(config, context, announce)
    watch = asyncio.create_task(server.watch(), name="watch the service")
    await server.serve(sockets=[listener])
    watch.cancel()
    if context.service.failure is not None:
        raise BackendError(f"the service could not go on: {context.service.failure}")


def _listener(host: str, port: int) -> socket.socket:
    """A port taken before anything else, for jobs must not run in a service that nobody can reach."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise InvalidSetting(f"the service cannot listen on {host}:{port}: {error.strerror}", field="port") from None
    return listener
