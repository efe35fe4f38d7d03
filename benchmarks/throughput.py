"""How many LLM tasks and submissions per second the service moves, beside the direct path in the same run.

    python benchmarks/throughput.py [--tasks N] [--rounds N]

Engines answer at once, in one chunk, from a process of their own; the store is durable SQLite. Tasks per second are
counted from the first POST to the last completion event that the client sees. The direct path is the same number of
identical calls sent by the same machine straight to the same engine with the service's own engine client. Rounds of all
shapes alternate; printed are medians over the rounds.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import rig
from rig import Client, Ends, Figure

from llmsched.runtime.engine import CompletionRequest, EngineClient
from llmsched.runtime.scripts.script import prompt_of

#: Tokens of every call.
PROMPT, OUTPUT = 200, 50
#: Requests the client keeps in flight.
CLIENTS = 64

#: What jobs look like: (stage, parallel calls, stages it waits for).
SHAPES: dict[str, list[tuple[str, int, tuple[str, ...]]]] = {
    "one call": [("answer", 1, ())],
    "3 stages, 6 calls": [("plan", 1, ()), ("work", 4, ("plan",)), ("join", 1, ("work",))],
    "20 parallel calls": [("answer", 20, ())],
}


def definition(shape: str) -> dict[str, object]:
    return {
        "stages": [
            {"name": name, "kind": "llm", "after": list(after), "max_tasks": tasks}
            for name, tasks, after in SHAPES[shape]
        ]
    }


def body_of(shape: str) -> bytes:
    stages = [rig.llm_stage(n, k, prompt=PROMPT, output=OUTPUT, deps=after) for n, k, after in SHAPES[shape]]
    return rig.recorded(name_of(shape), stages)


def name_of(shape: str) -> str:
    return "bench_" + "_".join(shape.replace(",", "").split())


def calls(shape: str) -> int:
    return sum(tasks for _, tasks, _ in SHAPES[shape])


async def through_service(client: Client, shape: str, tasks: int) -> tuple[float, float]:
    """(LLM tasks per second from the first POST to the last completion, submissions per second)."""
    body, jobs = body_of(shape), tasks // calls(shape)
    async with Ends.watch(client) as ends:
        began = time.perf_counter()
        await rig.in_parallel([client.submit(body) for _ in range(jobs)], CLIENTS)
        accepted = time.perf_counter()
        await ends.until(jobs)
    return jobs * calls(shape) / (ends.last - began), jobs / (accepted - began)


async def directly(engine: str, tasks: int) -> float:
    """Calls per second of the same client machine straight at the engine."""
    client = EngineClient(engine)
    await client.discover()
    request = CompletionRequest(
        prompt=prompt_of("benchmark", PROMPT), max_tokens=OUTPUT, min_tokens=OUTPUT, ignore_eos=True, keep_text=False
    )
    began = time.perf_counter()
    await rig.in_parallel([client.complete(request) for _ in range(tasks)], CLIENTS)
    seconds = time.perf_counter() - began
    await client.aclose()
    return tasks / seconds


async def submissions(client: Client, jobs: int) -> float:
    """Durable acceptances per second while nothing runs."""
    body = body_of("one call")
    began = time.perf_counter()
    await rig.in_parallel([client.submit(body) for _ in range(jobs)], CLIENTS)
    return jobs / (time.perf_counter() - began)


async def measure(tasks: int = 2_000, rounds: int = 3) -> list[Figure]:
    rates: dict[str, list[float]] = {"direct": [], **{shape: [] for shape in SHAPES}}
    accepted: list[float] = []
    async with rig.engines(1, max_batch=CLIENTS) as urls, rig.gateway(urls) as (server, client):
        for shape in SHAPES:
            await client.put_application(name_of(shape), definition(shape))
        await through_service(client, "one call", tasks // 10)
        cpu: dict[str, list[float]] = {shape: [] for shape in SHAPES}
        for _ in range(rounds):
            rates["direct"].append(await directly(urls[0], tasks))
            for shape in SHAPES:
                before = server.cpu_s
                rate, submitted = await through_service(client, shape, tasks)
                rates[shape].append(rate)
                cpu[shape].append((server.cpu_s - before) / tasks * 1e6)
                if shape == "one call":
                    accepted.append(submitted)
    async with rig.gateway() as (_, client):
        await client.put_application(name_of("one call"), definition("one call"))
        alone = [await submissions(client, tasks // 2) for _ in range(rounds)]
    direct = median(rates["direct"])
    figures = [Figure("direct calls, no service between", direct, "tasks/s")]
    for shape in SHAPES:
        rate = median(rates[shape])
        figures += [
            Figure(f"LLM tasks end to end, jobs of {shape}", rate, "tasks/s", goal=500, at_most=False),
            Figure("  share of the direct path", rate / direct * 100, "%"),
            Figure("  gateway CPU per task", median(cpu[shape]), "us"),
        ]
    return [
        *figures,
        Figure("submissions, nothing running", median(alone), "jobs/s", goal=200, at_most=False),
        Figure("submissions, while their jobs run", median(accepted), "jobs/s", goal=200, at_most=False),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=2_000, help="LLM tasks per round and shape")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rig.show(rig.run(measure(options.tasks, options.rounds)))


if __name__ == "__main__":
    main()
