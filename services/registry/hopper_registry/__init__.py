"""
The registry: which projects there are, which workers are alive, how the instances of this Hopper hang together, and
who may call it.

It owns the tables `projects`, `project_words`, `workers`, `hopper_instances`, `principals`, `role_bindings`,
`api_keys`, `token_keys`, `first_admin` and `registry_events`, the lifecycle of instances, and the keys that sign
tokens. It never routes, never sees a task, never keeps a key that it has shown, and calls no other service: others
watch it.
"""
