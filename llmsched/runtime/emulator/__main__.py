"""`python -m llmsched.runtime.emulator`: emulated engines as a child process with few imports."""

from __future__ import annotations

import argparse
import os
import sys

from llmsched.errors import InvalidInput
from llmsched.runtime.emulator.engine import run
from llmsched.runtime.emulator.faults import Fault
from llmsched.runtime.emulator.settings import DEFAULT_CACHE_BLOCKS, SCHEDULING_POLICIES


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llmsched.runtime.emulator",
        description="Emulated vLLM engines. Prints one JSON line per engine (url, model, slots) when ready.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8100, help="port of the first engine; 0 picks free ones")
    parser.add_argument("--engines", type=int, default=1, help="engines in this process, on successive ports")
    parser.add_argument("--latency", default="generic-7b", help="name of a latency curve, or a JSON file")
    parser.add_argument("--max-batch", type=int, default=16, help="slots of each engine")
    parser.add_argument("--speed", type=float, default=1.0, help="divides every duration")
    parser.add_argument("--model", default="emulated", help="name of the model served")
    parser.add_argument("--scheduling-policy", choices=SCHEDULING_POLICIES, default="priority")
    parser.add_argument("--max-model-len", type=int, default=32_768, help="prompt + output tokens")
    parser.add_argument("--seed", type=int, default=0, help="decides what a prompt is answered with")
    parser.add_argument(
        "--prefix-cache",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="what prompts share with earlier sequences costs no prefill",
    )
    parser.add_argument("--cache-blocks", type=int, default=DEFAULT_CACHE_BLOCKS, help="prefixes kept, 16 tokens each")
    parser.add_argument("--script", help="what to answer with: see llmsched.runtime.emulator.answers")
    parser.add_argument("--api-key-env", help="environment variable that holds the key clients must send")
    parser.add_argument("--exit-with-stdin", action="store_true", help="stop when standard input ends")
    parser.add_argument("--fault", type=_fault, help=argparse.SUPPRESS)  # KIND or KIND:COUNT, for tests
    return parser


def _fault(text: str) -> Fault:
    kind, _, count = text.partition(":")
    return Fault.of(kind, count=int(count) if count else None)


def main(arguments: list[str] | None = None) -> int:
    """0 after a signal, 2 with one sentence for bad values."""
    try:
        options = vars(_parser().parse_args(arguments))
        key_variable = options.pop("api_key_env")
        if key_variable is not None and not os.environ.get(key_variable):
            raise InvalidInput(f"the environment has no {key_variable}")
        run(**options, api_key=os.environ[key_variable] if key_variable else None)
    except InvalidInput as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
