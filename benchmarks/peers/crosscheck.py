"""One point once more with a public load tool, AIPerf (NVIDIA), so that nobody has to believe our own client.

AIPerf wants a tokenizer of Hugging Face's kind even where the server counts tokens, and has none of its own that needs
no network: one is made.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import servers
from load import MEAN_TOKENS, PROMPT

#: Requests of one run; p99 of fewer says nothing.
REQUESTS, WARMUP = 400, 32

_MAKE_TOKENIZER = """
import sys
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
tokenizer.train_from_iterator([sys.argv[2]], trainer)
PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(sys.argv[1])
"""


async def crosscheck(
    folder: Path, ways: Mapping[str, tuple[str, str, str]], *, slots: int, call_s: float
) -> dict[str, dict[str, float]]:
    """What AIPerf measures of streamed calls on each way, one after the other: p50 and p99 of latency, in milliseconds.

    ways: (URL, model, key) by name. Raises RuntimeError, with its last words, where it fails.
    """
    programs = servers.environment(servers.AIPERF)
    tokenizer, prompts = folder / "tokenizer", folder / "prompts.jsonl"
    await _run(folder, programs / "python", "-c", _MAKE_TOKENIZER, str(tokenizer), PROMPT)
    prompts.write_text(json.dumps({"text": PROMPT}) + "\n")
    found = {}
    for name, (url, model, key) in ways.items():
        out = folder / f"aiperf-{len(found)}"
        options = {
            "model": model,
            "url": url,
            "api-key": key or "none",
            "endpoint-type": "chat",
            "tokenizer": tokenizer,
            "input-file": prompts,
            "custom-dataset-type": "single_turn",
            "concurrency": slots,
            "concurrency-ramp-duration": call_s,
            "request-count": REQUESTS,
            "warmup-request-count": WARMUP,
            "workers-max": 1,
            "record-processors": 1,
            "ui": "none",
            "artifact-dir": out,
        }
        words = [part for option, value in options.items() for part in (f"--{option}", str(value))]
        tokens = int(MEAN_TOKENS)
        for extra in (f"max_tokens:{tokens}", f"min_tokens:{tokens}", "ignore_eos:true"):
            words += ["--extra-inputs", extra]
        await _run(folder, programs / "aiperf", "profile", *words, "--streaming", "--use-server-token-count")
        found[name] = latency(json.loads((out / "profile_export_aiperf.json").read_text()))
    return found


def latency(document: Mapping[str, Any]) -> dict[str, float]:
    """p50, p99 of the latency in milliseconds, and calls per second, from AIPerf's export.

    Raises RuntimeError where requests failed.
    """
    told, count = document["request_latency"], document["request_count"]["avg"]
    failed = document.get("error_request_count", {}).get("avg", 0)
    if failed or count < REQUESTS:
        raise RuntimeError(f"AIPerf reports {count:g} requests of {REQUESTS}, {failed:g} of them failed")
    if told["unit"] != "ms":
        raise RuntimeError(f"AIPerf reports latencies in {told['unit']}, not in milliseconds")
    return {"p50": told["p50"], "p99": told["p99"], "rate": document["request_throughput"]["avg"]}


async def _run(folder: Path, *command: Path | str) -> None:
    log = folder / "aiperf.log"
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *map(str, command), cwd=folder, stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=out
        )
        status = await process.wait()
    if status:
        raise RuntimeError(f"{command[0]} ended with status {status}: {log.read_text(errors='replace')[-2000:]}")
