"""
Where Hoppers are: `host:port`, with brackets around the host where it is IPv6. Plain text; nothing is looked up here.
"""

import ipaddress
import re
from collections.abc import Iterable
from typing import Final

from hopper_common.errors import FieldViolation, InvalidArgument

MOST_BYTES: Final = 255

_HOST: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?", re.ASCII)


def split(address: str, *, least_port: int = 1) -> tuple[str, int]:
    """
    Host and port of an address; the host without brackets.

    Raises:
        ValueError: It is none.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or not least_port <= int(port) <= 65535:
        raise ValueError(f"must be host:port, with a port from {least_port} to 65535")
    return _checked_host(host), int(port)


def joined(host: str, port: int) -> str:
    """The address of a host, given with or without brackets, and a port."""
    plain = host.strip("[]")
    return f"[{plain}]:{port}" if ":" in plain else f"{plain}:{port}"


def check_host(host: str) -> str:
    """
    The host, without brackets.

    Raises:
        ValueError: It is none.
    """
    return _checked_host(f"[{host}]" if ":" in host and not host.startswith("[") else host)


def _checked_host(host: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        return str(ipaddress.IPv6Address(host[1:-1]))
    if len(host) > MOST_BYTES - 6 or not _HOST.fullmatch(host):
        raise ValueError("must have a host name, an IPv4 address, or an IPv6 address in brackets")
    return host


def check(address: str, field: str) -> str:
    """
    The address, in the form that all others have.

    Raises:
        InvalidArgument: It is none.
    """
    try:
        return joined(*split(address))
    except ValueError as error:
        raise InvalidArgument(violations=[FieldViolation(field, str(error))]) from None


def check_all(addresses: Iterable[str], field: str) -> tuple[str, ...]:
    """
    The addresses, each once.

    Raises:
        InvalidArgument: With each that is none, by its place in *field*.
    """
    violations: list[FieldViolation] = []
    found = dict[str, None]()
    for number, address in enumerate(addresses):
        try:
            found[check(address, f"{field}[{number}]")] = None
        except InvalidArgument as error:
            violations.extend(error.violations)
    if violations:
        raise InvalidArgument(violations=violations)
    return tuple(found)


def sound(addresses: Iterable[str], most: int) -> tuple[str, ...]:
    """Those of somebody else's addresses that are some, each once, at most so many."""
    found = dict[str, None]()
    for address in addresses:
        try:
            found[joined(*split(address))] = None
        except ValueError:
            continue  # what a stranger says need not make sense
    return tuple(found)[:most]
