"""For tests of applications: an engine that answers from a script, so that results can be checked.

async with emulated(answer=lambda call: "42", speed=1000) as engine:
    ...  # engine.url is a vLLM server whose model always says 42
"""

from llmsched.runtime.emulator import EmulatedEngine, EmulatorSettings, emulated
from llmsched.runtime.emulator.answers import Answer, Call, read_script

__all__ = ["Answer", "Call", "EmulatedEngine", "EmulatorSettings", "emulated", "read_script"]
