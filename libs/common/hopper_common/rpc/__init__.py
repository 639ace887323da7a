"""
How Hopper speaks gRPC: limits on every request, one table of errors, one interceptor, one way to listen and
one to dial.

It owns what surrounds a call, and never what a call means: no service, no message of a service is named here.
"""

import os

# gRPC reads this once, when it is first imported. Its fork handlers take locks at every start of a subprocess
# (git, for one), and nothing here goes on in Python after a fork.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
# Its own remarks ("got goaway") go to stderr past our log; only its errors are worth that.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
