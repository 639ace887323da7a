"""
The reference Sage: an outside advisor that speaks `hopper.sage.v1`.

It owns a journal: what it was asked, what it answered, and what came of it. It advises from that, and from a language
model where one is set up. It never decides for a Hopper, never calls one, and is told about tasks only what it is
asked; a Hopper runs without it.
"""
