"""Counters of one emulated engine, in Prometheus text under the names of vLLM v1.

Names, labels and buckets are those of vLLM's `v1/metrics/loggers.py`. Times are wall seconds, as a client
of the emulator measures them. Token counters move while requests run, as in vLLM, and are exact: after the
last request they equal the sums of its `usage`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from llmsched.runtime.emulator.paced import Call, PacedServer
from llmsched.runtime.emulator.settings import EmulatorSettings

# fmt: off
REQUEST_LATENCY_BUCKETS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
)
FIRST_TOKEN_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0, 160.0, 640.0, 2560.0,
)
# fmt: on
FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")


class Histogram:
    """Cumulative buckets, a sum and a count."""

    def __init__(self, name: str, help: str, buckets: tuple[float, ...]) -> None:
        self.name = name
        self.help = help
        self.buckets = buckets
        self.counts = [0] * (len(buckets) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """One more."""
        self.counts[bisect_left(self.buckets, value)] += 1
        self.sum += value

    def lines(self, labels: str) -> Iterator[str]:
        """Exposition, without a trailing newline."""
        yield from _head(self.name, self.help, "histogram")
        total = 0
        for bound, count in zip([*map(str, map(float, self.buckets)), "+Inf"], self.counts, strict=True):
            total += count
            yield f'{self.name}_bucket{{{labels},le="{bound}"}} {float(total)}'
        yield f"{self.name}_count{{{labels}}} {float(total)}"
        yield f"{self.name}_sum{{{labels}}} {self.sum}"


class EngineMetrics:
    """What has happened on one engine; what is happening is asked of its server."""

    def __init__(self, settings: EmulatorSettings, paced: PacedServer) -> None:
        self._settings = settings
        self._paced = paced
        name = settings.model.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        self._labels = f'engine="0",model_name="{name}"'
        #: begun and not ended; may have finished decoding and be on their way to a slow client
        self._active: dict[Call, None] = {}
        #: of the requests that ended
        self._prompt_tokens = 0
        self._generation_tokens = 0
        self.requests = dict.fromkeys(FINISH_REASONS, 0)
        self._first_token = Histogram(
            "vllm:time_to_first_token_seconds", "Histogram of time to first token in seconds.", FIRST_TOKEN_BUCKETS
        )
        self._e2e, self._queue, self._prefill, self._decode = (
            Histogram(f"vllm:{name}_seconds", f"Histogram of {help}.", REQUEST_LATENCY_BUCKETS)
            for name, help in (
                ("e2e_request_latency", "e2e request latency in seconds"),
                ("request_queue_time", "time spent in WAITING phase for request"),
                ("request_prefill_time", "time spent in PREFILL phase for request"),
                ("request_decode_time", "time spent in DECODE phase for request"),
            )
        )

    def begin(self, call: Call) -> None:
        """A request was submitted."""
        self._active[call] = None

    def end(self, call: Call, tokens: int, reason: str) -> None:
        """A request left with so many output tokens, for that reason."""
        del self._active[call]
        sequence, speed = call.sequence, self._settings.speed
        self.requests[reason] += 1
        self._generation_tokens += tokens
        if sequence.decoding_at is None or sequence.admitted_at is None:
            return
        self._prompt_tokens += sequence.prompt_tokens
        if sequence.finished_at is None:
            return
        # vLLM's first token falls out of prefill.
        self._first_token.observe((sequence.decoding_at - sequence.arrived_at) / speed)
        self._e2e.observe((sequence.finished_at - sequence.arrived_at) / speed)
        self._queue.observe((sequence.admitted_at - sequence.arrived_at) / speed)
        self._prefill.observe((sequence.decoding_at - sequence.admitted_at) / speed)
        self._decode.observe((sequence.finished_at - sequence.decoding_at) / speed)

    def exposition(self) -> str:
        """The page for GET /metrics."""
        server = self._paced.server
        running = [(call.sequence, self._paced.tokens(call)) for call in self._active]
        decoding = [(sequence, tokens) for sequence, tokens in running if sequence.decoding_at is not None]
        prompt_tokens = self._prompt_tokens + sum(sequence.prompt_tokens for sequence, _ in decoding)
        generation_tokens = self._generation_tokens + sum(tokens for _, tokens in decoding)
        cached = sum(
            sequence.prompt_tokens + tokens for sequence, tokens in running if sequence.admitted_at is not None
        )
        labels = self._labels
        lines: list[str] = []
        for name, kind, help, value in (
            ("num_requests_running", "gauge", "Number of requests in model execution batches.", server.running),
            ("num_requests_waiting", "gauge", "Number of requests waiting to be processed.", server.waiting),
            (
                "kv_cache_usage_perc",
                "gauge",
                "KV-cache usage. 1 means 100 percent usage.",
                cached / (self._settings.max_batch * self._settings.max_model_len),
            ),
            ("num_preemptions_total", "counter", "Cumulative number of preemption from the engine.", 0),
            (
                "prefix_cache_queries_total",
                "counter",
                "Prefix cache queries, in terms of number of queried tokens.",
                self._paced.cache.queries,
            ),
            (
                "prefix_cache_hits_total",
                "counter",
                "Prefix cache hits, in terms of number of cached tokens.",
                self._paced.cache.hits,
            ),
            ("prompt_tokens_total", "counter", "Number of prefill tokens processed.", prompt_tokens),
            ("generation_tokens_total", "counter", "Number of generation tokens processed.", generation_tokens),
        ):
            lines += [*_head(f"vllm:{name}", help, kind), f"vllm:{name}{{{labels}}} {float(value)}"]
        lines += _head("vllm:request_success_total", "Count of successfully processed requests.", "counter")
        for reason, count in self.requests.items():
            by_reason = labels.replace(",", f',finished_reason="{reason}",', 1)
            lines.append(f"vllm:request_success_total{{{by_reason}}} {float(count)}")
        for histogram in (self._first_token, self._e2e, self._queue, self._prefill, self._decode):
            lines += histogram.lines(labels)
        return "\n".join(lines) + "\n"


def _head(name: str, help: str, kind: str) -> tuple[str, str]:
    return f"# HELP {name} {help}", f"# TYPE {name} {kind}"
