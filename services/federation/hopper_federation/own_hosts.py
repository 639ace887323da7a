"""Where other machines reach this one, as far as it can tell by itself."""

import contextlib
import ipaddress
import socket
from collections.abc import Iterator

MOST_HOSTS = 8


def own_hosts(listen_host: str, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """
    The hosts to tell others.

    Args:
        listen_host: What is listened on: one address, or all of them (`0.0.0.0`, `::`).
        wanted: What the operator said; that is all, then.
    """
    if wanted:
        return wanted
    try:
        address = ipaddress.ip_address(listen_host)
    except ValueError:
        return (listen_host,)  # a name
    if not address.is_unspecified:
        return (str(address),)
    found = dict.fromkeys((*_outward(), *_named()))
    return tuple(found)[:MOST_HOSTS] or ("127.0.0.1",)


def _outward() -> Iterator[str]:
    """The addresses from which this machine would speak to others. Nothing is sent."""
    for family, far in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((far, 9))
            host: str = probe.getsockname()[0]
            if _reachable(host):
                yield host


def _named() -> Iterator[str]:
    with contextlib.suppress(OSError):
        for *_, where in socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM):
            host = str(where[0])
            if _reachable(host):
                yield host


def _reachable(host: str) -> bool:
    address = ipaddress.ip_address(host.partition("%")[0])
    return not (address.is_loopback or address.is_link_local or address.is_unspecified)
