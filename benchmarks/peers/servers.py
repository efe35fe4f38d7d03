"""What stands between a client and the engines: this service, another checkout of it, the LiteLLM proxy.

LiteLLM and the public load tool live in virtual environments of their own under `.cache/peers`, which git ignores. They
are made on demand, and what they depend on never meets what this project depends on.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import venv
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml
from wire import Connection, request

from llmsched.runtime.supervise import free_port

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "peers"
#: What is installed: distribution, version, and the extra it needs.
LITELLM = ("litellm", "1.108.7", "[proxy]")
AIPERF = ("aiperf", "0.13.0", "")
#: Both gateways ask for one key: LiteLLM does not start without.
KEY = "sk-benchmark-0123456789abcdef"
#: Seconds until a gateway has to answer.
PATIENCE = 120.0


def environment(package: tuple[str, str, str]) -> Path:
    """The folder of programs of an environment with this package, which is made if it is not there."""
    name, version, extra = package
    folder = CACHE / f"{name}-{version}"
    programs = folder / "bin"
    if not (folder / "installed").exists():
        print(f"installing {name} {version} into {folder.relative_to(ROOT)}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(programs / "python"), "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
        subprocess.run([*pip, f"{name}{extra}=={version}"], check=True)
        (folder / "installed").touch()
    return programs


@dataclass(frozen=True, slots=True)
class Server:
    """A gateway that runs."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def cpu_s(self) -> float:
        """CPU seconds so far, of all its processes."""
        own = psutil.Process(self.process.pid)
        times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
        return sum(t.user + t.system for t in times)


@asynccontextmanager
async def llmsched(
    folder: Path, engines: Mapping[str, str], *, checkout: Path = ROOT, name: str = "llmsched"
) -> AsyncIterator[Server]:
    """`llmsched serve` of a checkout as it comes: durable SQLite, default policy, access log. engines: URL by pool."""
    port, store = free_port(), f"sqlite:///{folder / f'{name}.db'}"
    command = [sys.executable, "-m", "llmsched", "serve", "--port", str(port), "--store", store]
    async with _running(
        command, port, "/health", folder / f"{name}.log", checkout, LLMSCHED_API_KEYS=f"bench:{KEY}"
    ) as s:
        for pool, url in engines.items():
            body = f'{{"url": "{url}", "pool": "{pool}"}}'.encode()
            await _expect(201, request("POST", f"{s.url}/v1/engines", body, key=KEY), s)
        await _until(request("GET", f"{s.url}/ready"), s)
        yield s


@asynccontextmanager
async def litellm(folder: Path, engines: Mapping[str, str], *, workers: int) -> AsyncIterator[Server]:
    """The LiteLLM proxy as its documentation has it for production, without a database. engines: URL by model name."""
    config = folder / f"litellm-{workers}.yaml"
    models = [
        {
            "model_name": name,
            "litellm_params": {"model": "hosted_vllm/emulated", "api_base": f"{url}/v1", "api_key": "none"},
        }
        for name, url in engines.items()
    ]
    settings = {"set_verbose": False, "json_logs": True, "request_timeout": 600}
    document = {"model_list": models, "litellm_settings": settings, "general_settings": {"master_key": KEY}}
    config.write_text(yaml.safe_dump(document))
    port, program = free_port(), environment(LITELLM) / "litellm"
    command = [str(program), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    # Uvicorn would kill a worker that loads LiteLLM's modules for more than 5 s, which happens on a busy machine.
    command += ["--num_workers", str(workers), "--timeout_worker_healthcheck", str(int(PATIENCE))]
    log = folder / f"litellm-{workers}.log"
    quiet = {"LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    async with _running(command, port, "/health/readiness", log, folder, **quiet) as server:
        yield server


@asynccontextmanager
async def _running(
    command: Sequence[str], port: int, ready: str, log: Path, cwd: Path, **variables: str
) -> AsyncIterator[Server]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("LLMSCHED_", "LITELLM_"))}
    inherited["PYTHONUNBUFFERED"] = "1"  # what it said last must be in its log
    with log.open("wb") as out:
        process = subprocess.Popen(  # noqa: ASYNC220 (before anything is measured)
            command, cwd=cwd, env=inherited | variables, stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        await _until(request("GET", f"{server.url}{ready}"), server)
        yield server
    finally:
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, 20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _until(question: bytes, server: Server) -> None:
    """Waits until the answer is 200. Raises RuntimeError, with its last words, for a server that does not get there."""
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                if server.process.poll() is not None:
                    raise RuntimeError(f"it ended with status {server.process.returncode}")
                connection = Connection(server.url)
                try:
                    async with asyncio.timeout(2.0):
                        if (await connection.ask(question)).status == 200:
                            return
                except OSError:  # of which TimeoutError is one
                    pass
                finally:
                    connection.close()
                await asyncio.sleep(0.05)
    except (TimeoutError, RuntimeError) as error:
        words = server.log.read_text(errors="replace")[-2000:]
        why = str(error) or f"it did not answer within {PATIENCE:g} s"
        raise RuntimeError(f"{server.url} is not ready ({why}): {words}") from error


async def _expect(status: int, question: bytes, server: Server) -> None:
    connection = Connection(server.url)
    answer = await connection.ask(question)
    connection.close()
    if answer.status != status:
        raise RuntimeError(f"{server.url} answered {answer.status}: {answer.body!r}")
