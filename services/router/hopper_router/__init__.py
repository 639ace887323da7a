"""
The router: tasks, where they go, who has them, and how they end.

It owns tasks, decisions, policies, claims and delegations inside this Hopper, and the log of everything that
happened to them. It never executes a task, never stores a project or an instance (it watches the registry), and
learns nothing itself (it sends episodes to memory).
"""
