"""Which jobs arrive when: traces, a generator, arrival processes, and workloads made of them."""

from llmsched.workloads.arrivals import arrival_times, gamma_bursts, poisson, read_arrivals, recorded
from llmsched.workloads.generator import APPLICATIONS, generate, isolated_seconds
from llmsched.workloads.prompts import Prompts
from llmsched.workloads.traces import read_trace, read_traces, write_trace
from llmsched.workloads.workload import WORKLOADS, Arrival, Workload, build_workload

__all__ = [
    "APPLICATIONS",
    "WORKLOADS",
    "Arrival",
    "Prompts",
    "Workload",
    "arrival_times",
    "build_workload",
    "gamma_bursts",
    "generate",
    "isolated_seconds",
    "poisson",
    "read_arrivals",
    "read_trace",
    "read_traces",
    "recorded",
    "write_trace",
]
