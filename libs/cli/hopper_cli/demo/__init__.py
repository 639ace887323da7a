"""
`hopper demo`: the whole of Hopper, run once from end to end on this machine.

A real Hopper is started as a child process, thirteen teams are registered, their rules are switched on, a
stream of tasks is submitted, workers claim and complete them over gRPC and say whether they went to the right
team. Every number that is shown at the end was measured or asked for; nothing is made up.
"""
