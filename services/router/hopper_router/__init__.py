"""
The router: tasks, where they go, who has them, and how they end.

It owns tasks, decisions, policies, claims and delegations inside this Hopper, and the log of everything that
happened to them. It never executes a task, never stores a project or an instance (it watches the registry), and
learns nothing itself (it sends episodes to memory).
"""

import os

# numpy's BLAS reads this once, when it is first imported. One decision is a few microseconds of arithmetic: more
# threads than one only wake each other up (measured: 2.3 ms a submit became 1.3).
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
