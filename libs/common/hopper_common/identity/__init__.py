"""
Who this Hopper is: its keys and certificates, the files they are in, their rotation, what others are told of them,
and their backup.

It owns the directory `identity` of a data directory. It never decides whom to trust or what anybody may do.
"""
