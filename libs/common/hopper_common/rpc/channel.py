"""
Channels to other services of this Hopper.

A channel is cheap to open, connects by itself and again after a loss, and is shared by all calls to one
address. Deadlines belong to the call: pass `timeout=` with each. Retries belong to the caller, who knows
what is idempotent.
"""

import importlib.metadata

import grpc.aio

from hopper_common.rpc.address import check_address

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
ACCEPTED = (("hopper-accepted", "1"),)
"""Initial metadata of a server that has looked at the first message of a stream, and wants the others."""


def _version() -> str:
    try:
        return importlib.metadata.version("hopper-mesh")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return "0"


# Of every channel that Hopper opens, the SDK's too.
OPTIONS = (
    ("grpc.primary_user_agent", f"hopper/{_version()}"),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A half-dead connection is noticed in 40 s instead of never, also while a watcher just listens.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # grpc waits up to two minutes before it dials again; a restarted Hopper is back sooner, and retries in between
    # would all fail without dialling.
    ("grpc.initial_reconnect_backoff_ms", 50),
    # Of all things, that is how long a server may take to greet: a busy one is not one that is gone.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Its transparent retries know nothing of request ids and leases.
    ("grpc.enable_retries", 0),
    # Everything dialled is on this machine; a proxy from the environment would only see plain text.
    ("grpc.enable_http_proxy", 0),
)


def open_channel(address: str) -> grpc.aio.Channel:
    """
    Open a channel. It connects with its first call.

    Args:
        address: `unix:/path` or a loopback `host:port`.

    Raises:
        AddressRefused: Malformed, or not of this machine.
    """
    return grpc.aio.insecure_channel(check_address(address), options=OPTIONS)
