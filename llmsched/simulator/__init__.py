"""The simulated world: the scheduler core of the live service, unmodified, among machines made of numbers.

`world` is one run; `experiment` compares policies over seeds and loads; `statistics` says what the runs show.
"""

from llmsched.simulator.world import EngineLoss, Finished, Setup, Span, World

__all__ = ["EngineLoss", "Finished", "Setup", "Span", "World"]
