"""
Memory: what Hopper decided, what came of it, and what people say about it.

It owns the episodes (one decision joined to its outcome), the feedback on them, the score that is kept from
both, the lessons that they teach and the models that lessons add up to, and the small contexts that decisions
being made now share for a while. It never decides where a task goes, never learns by itself, never changes a
task, and calls no other service: what it knows it was told.
"""
