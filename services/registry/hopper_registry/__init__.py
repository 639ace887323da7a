"""
The registry: which projects there are, which workers are alive, and how the instances of this Hopper hang
together.

It owns the tables `projects`, `project_words`, `workers`, `hopper_instances` and `registry_events`, and the
lifecycle of instances. It never routes, never sees a task, and calls no other service: others watch it.
"""
