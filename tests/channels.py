"""Channels for tests that stop and start what they call."""

import grpc
import grpc.aio

from hopper_common.rpc.channel import OPTIONS


def separate_channel(address: str) -> grpc.aio.Channel:
    """
    A channel with a connection of its own.

    Channels of one process share their connections by address: a call on a new one could still go down the connection
    to the server that was stopped a moment ago, and fail.
    """
    return grpc.aio.insecure_channel(address, options=[*OPTIONS, ("grpc.use_local_subchannel_pool", 1)])
