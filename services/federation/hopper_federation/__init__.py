"""
The federation service: which other Hoppers there are, how they came to be known, and how far each is trusted.

It owns the tables `peers`, `trust_roots`, `invitations`, `joins`, `pairings`, `grants` and `federation_events`, and the
two ports that other machines reach. It never routes a task, and never trusts anybody by itself: a level rises only
where this Hopper's owner says so.
"""
