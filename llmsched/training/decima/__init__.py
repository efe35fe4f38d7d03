"""Training of Decima: needs torch (`pip install 'llmsched[train]'`); what comes out is a checkpoint for numpy.

```
episodes.py   episodes in the simulator: jobs, machines, a policy that samples its choices or copies a teacher
returns.py    rewards, returns and the baseline of several episodes on the same arrivals
model.py      the network in torch: scores of many graphs at once, and their gradients
learn.py      behaviour cloning, PPO, validation; the best checkpoint
```
"""
