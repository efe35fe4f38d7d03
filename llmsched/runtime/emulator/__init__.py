"""An emulated vLLM: real HTTP, real waiting, no GPU. Speaks the OpenAI API and vLLM's metrics.

`run` serves until a signal, `serve_emulators` inside a loop, `emulated` for the length of a test. What
decodes when is decided by `llmsched.model.decoding`; this package adds the clock and the wire.
"""

from llmsched.runtime.emulator.engine import EmulatedEngine, emulated, run, serve_emulators
from llmsched.runtime.emulator.faults import Fault, FaultKind
from llmsched.runtime.emulator.settings import (
    SCHEDULING_POLICIES,
    EmulatorSettings,
    read_latency_curve,
)

__all__ = [
    "SCHEDULING_POLICIES",
    "EmulatedEngine",
    "EmulatorSettings",
    "Fault",
    "FaultKind",
    "emulated",
    "read_latency_curve",
    "run",
    "serve_emulators",
]
