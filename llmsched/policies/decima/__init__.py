"""Decima: a graph network, trained by reinforcement, chooses the next stage and how many slots its job may have.

```
graph.py    jobs as graphs of unfinished stages: what the network sees
network.py  the network in numpy, read from a checkpoint
policy.py   choices until no slot is free
agents.py   which checkpoints ship, and which one fits the applications at hand
```

Training is in `llmsched.training.decima`.
Source: Mao et al., Learning Scheduling Algorithms for Data Processing Clusters (SIGCOMM 2019), hongzimao/decima-sim;
specification 6.
"""

from llmsched.policies.decima.policy import Decima

__all__ = ["Decima"]
