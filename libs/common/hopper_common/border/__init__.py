"""
What may cross between this Hopper and a peer: levels of trust, policies as their owner writes them, and the ruling.

The federation service rules by it when something does cross, the router before it lets a peer have a task at all. Pure:
nothing here knows of grpc, a database, generated code, or how a peer is reached.
"""
