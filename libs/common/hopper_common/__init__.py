"""
What every Hopper service needs and none should write twice: errors, clock, ids, storage with group commit,
the event log, idempotency, page tokens, the gRPC server and the host.

It owns no table of its own, knows no service by name, and never decides anything about tasks, projects or
instances.
"""
