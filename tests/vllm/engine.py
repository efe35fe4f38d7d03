"""A real vLLM server with random weights on the CPU, for tests: start, look at its counters, kill, restart.

The interpreter that has vLLM is named by `LLMSCHED_VLLM_PYTHON`; vLLM is never imported here. What runs is
`vllm.entrypoints.openai.api_server` with the model of `tiny_model.py`: a real tokenizer, scheduler, paged KV
cache, structured output and HTTP server around a model that knows nothing. About 40 s until it answers (three
processes one after the other import torch and vLLM), 3 GB of memory, 7 to 12 ms per token.

vLLM 0.32 counts an aborted request nowhere: `vllm:request_success_total{finished_reason="abort"}` stays 0
when a client closes its connection. `RealEngine.aborted()` reads the server's log of requests instead, and
`RealEngine.received()` which requests came at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from llmsched.runtime import tether

HERE = Path(__file__).parent

#: Seconds. Cold caches and a busy machine make the first start three times as long as later ones.
START_DEADLINE = 300.0

#: The server's settings for a machine without a GPU, plus: no network, no statistics sent home.
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GB: 524,288 tokens of this model
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",  # the model is too small for two threads to help each other
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONPATH": str(Path(__file__).with_name("naps")),
    # Memory of a step is kept for the next one. (vLLM advises TCMalloc for that, which is not installed everywhere.)
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "67108864",
}

#: A completion request has a number behind its id, because it may hold many prompts; a chat request has none.
RECEIVED = re.compile(r"Received request (?:chatcmpl-(\S+?)|cmpl-(\S+?)-\d+): params")
ABORTED = re.compile(r"Request (?:chatcmpl-(\S+?)|cmpl-(\S+?)-\d+) aborted\.")


class EngineFailed(Exception):
    """The engine did not start, or did not reach a state that a test waits for; carries the log's tail."""


@dataclass(frozen=True)
class Counters:
    """What an engine has done so far, or, as a difference of two, in between.

    prompt_tokens, generation_tokens: tokens, of aborted requests too. finished: requests by finish reason
    ("stop", "length", …), reasons that did not occur left out.
    """

    prompt_tokens: int = 0
    generation_tokens: int = 0
    finished: Mapping[str, int] = field(default_factory=dict)

    def __sub__(self, before: Counters) -> Counters:
        moved = {reason: n - before.finished.get(reason, 0) for reason, n in self.finished.items()}
        return Counters(
            self.prompt_tokens - before.prompt_tokens,
            self.generation_tokens - before.generation_tokens,
            {reason: n for reason, n in moved.items() if n},
        )


@dataclass(frozen=True)
class Metrics:
    """One scrape of an engine's /metrics."""

    #: name -> (labels, value) of each sample, in the order of the page.
    samples: Mapping[str, list[tuple[dict[str, str], float]]]

    @classmethod
    def parse(cls, text: str) -> Metrics:
        """Read the Prometheus text format."""
        samples: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                samples.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
        return cls(samples)

    @classmethod
    def of(cls, url: str) -> Metrics:
        """Scrape the server at `url`."""
        return cls.parse(httpx.get(f"{url}/metrics", timeout=10).raise_for_status().text)

    def value(self, name: str, **labels: str) -> float:
        """Sum of the samples of `name` whose labels include `labels`; KeyError if there is none."""
        found = [
            value for have, value in self.samples.get(name, []) if all(have.get(k) == v for k, v in labels.items())
        ]
        if not found:
            raise KeyError(f"no sample {name} with labels {labels}")
        return sum(found)

    def counters(self) -> Counters:
        """The counters that a recorded job moves by known amounts."""
        finished = {labels["finished_reason"]: int(n) for labels, n in self.samples["vllm:request_success_total"]}
        return Counters(
            int(self.value("vllm:prompt_tokens_total")),
            int(self.value("vllm:generation_tokens_total")),
            {reason: n for reason, n in finished.items() if n},
        )


class RealEngine:
    """One vLLM server on one port; `restart` gives a new process on the same port.

    python: the interpreter that has vLLM. log: file that its output is appended to. slots: the most requests
    it runs at once (`--max-num-seqs`). stream_interval: tokens per streamed chunk; 1 is vLLM's default and
    costs more than the model does. policy: None leaves out `--scheduling-policy`, as most servers do.
    """

    model = "tiny"
    max_model_len = 12_288

    def __init__(
        self,
        python: str,
        log: Path,
        *,
        slots: int = 8,
        stream_interval: int = 1,
        policy: str | None = "priority",
        port: int | None = None,
    ) -> None:
        self.python = python
        self.log = log
        self.slots = slots
        self.stream_interval = stream_interval
        self.policy = policy
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        #: Seconds from the process to the first good answer, of the latest start.
        self.start_seconds = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._leash = -1
        self._spawned_at = 0.0
        self._log_start = 0

    def start(self, deadline: float = START_DEADLINE) -> None:
        """Start the server and wait until it is healthy.

        Raises EngineFailed, with the end of the log, if it exits before or takes longer than `deadline` seconds;
        nothing is left running then.
        """
        self.spawn()
        self.wait_ready(deadline)

    def spawn(self) -> None:
        """Start the server and return at once."""
        assert self._process is None, "this engine is already running"
        directory = make_model(self.python)
        command = [self.python, "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--model", directory, "--served-model-name", self.model]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", str(self.max_model_len)]
        command += ["--max-num-seqs", str(self.slots), "--stream-interval", str(self.stream_interval)]
        command += ["--enable-log-requests", "--disable-uvicorn-access-log"]
        if self.policy is not None:
            command += ["--scheduling-policy", self.policy]
        # On a tether, as what the service launches: killing one process of a vLLM leaves others behind, and
        # killing us would leave them all. No grace: `stop` gives it.
        reading, self._leash = os.pipe()
        with self.log.open("ab") as output:
            self._log_start = output.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", tether.__file__, str(reading), "0", "--", *command],
                pass_fds=(reading,),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **ENVIRONMENT},
                start_new_session=True,
            )
        os.close(reading)
        self._spawned_at = time.monotonic()

    def wait_ready(self, deadline: float = START_DEADLINE) -> None:
        """Wait until a spawned server is healthy; raises as `start` does."""
        try:
            self.wait_until(lambda: self.exited or self.healthy, deadline, "healthy")
            if self.exited:
                raise EngineFailed(f"vLLM exited before it was healthy; its log ends:\n{self.log_tail()}")
        except BaseException:
            self.kill()
            raise
        self.start_seconds = time.monotonic() - self._spawned_at

    def stop(self, deadline: float = 20.0) -> None:
        """Ask the server to end, as an operator would, and then make sure that no process of it is left."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                for pid in self.pids()[:1]:
                    os.kill(pid, signal.SIGTERM)
                self._process.wait(deadline)
        self.kill()

    def kill(self, deadline: float = 20.0) -> None:
        """SIGKILL to every process of the server at once; returns when they are gone."""
        if self._process is None:
            return
        self._process.terminate()
        self._process.wait(deadline)
        os.close(self._leash)
        self._process = None

    def restart(self, deadline: float = START_DEADLINE) -> None:
        """Kill what runs, if it still does, and start again on the same port. Counters begin at zero."""
        self.kill()
        self.start(deadline)

    @property
    def exited(self) -> bool:
        """Whether the server has ended without being told."""
        return self._process is not None and self._process.poll() is not None

    @property
    def healthy(self) -> bool:
        """Whether GET /health answers 200."""
        try:
            return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def pids(self) -> list[int]:
        """Every living process of the server, the API server first; empty when it does not run."""
        return tether.descendants(self._process.pid) if self._process is not None and not self.exited else []

    def worker(self) -> int:
        """The process that computes; EngineFailed if there is none."""
        for pid in self.pids():
            if Path(f"/proc/{pid}/comm").read_text().strip() == "VLLM::Worker":
                return pid
        raise EngineFailed(f"vLLM has no worker process; its log ends:\n{self.log_tail()}")

    def metrics(self) -> Metrics:
        """Scrape /metrics."""
        return Metrics.of(self.url)

    def counter(self, name: str, **labels: str) -> float:
        """Sum of the samples of `name` that carry `labels`, of a fresh scrape."""
        return self.metrics().value(name, **labels)

    def counters(self) -> Counters:
        """The counters that a recorded job moves by known amounts, of a fresh scrape."""
        return self.metrics().counters()

    def running(self) -> int:
        """Requests that the engine has and has not finished, running or waiting."""
        scrape = self.metrics()
        return int(scrape.value("vllm:num_requests_running") + scrape.value("vllm:num_requests_waiting"))

    def aborted(self) -> list[str]:
        """Requests of the latest start that clients gave up, in order.

        Each by its `X-Request-Id`, or the id that the engine made up when there was none.
        """
        return self._named(ABORTED)

    def received(self) -> list[str]:
        """Requests of the latest start, in order; each as in `aborted`."""
        return self._named(RECEIVED)

    def _named(self, line: re.Pattern[str]) -> list[str]:
        return [chat or completion for chat, completion in line.findall(self._log_text())]

    def wait_until(self, condition: Callable[[], bool], deadline: float, what: str) -> None:
        """Poll `condition` for `deadline` seconds; EngineFailed, with `what` and the log's end, if it stays false."""
        until = time.monotonic() + deadline
        while not condition():
            if time.monotonic() > until:
                raise EngineFailed(f"vLLM is not {what} after {deadline:g} s; its log ends:\n{self.log_tail()}")
            time.sleep(0.05)

    def log_tail(self, lines: int = 40) -> str:
        """The last lines that this start wrote."""
        return "\n".join(self._log_text().splitlines()[-lines:])

    def _log_text(self) -> str:
        with self.log.open("rb") as output:
            output.seek(self._log_start)
            return output.read().decode(errors="replace")


@contextlib.contextmanager
def running(engine: RealEngine) -> Iterator[RealEngine]:
    """`engine`, started, and with nothing left of it afterwards."""
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


async def eventually(condition: Callable[[], bool], deadline: float = 30.0) -> None:
    """Wait for what another process will make true, letting the event loop run."""
    until = time.monotonic() + deadline
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < until, "did not happen in time"
        await asyncio.sleep(0.02)


def make_model(python: str) -> str:
    """Directory of the tiny model, made now if the cache does not have it."""
    made = subprocess.run([python, str(HERE / "tiny_model.py")], capture_output=True, text=True, check=False)
    if made.returncode:
        raise EngineFailed(f"{python} cannot make the tiny model:\n{made.stderr}")
    return made.stdout.strip()


def free_port() -> int:
    """A TCP port of this host that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
