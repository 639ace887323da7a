"""
Where a Hopper listens and what it dials: `unix:/path/to.sock`, or `127.0.0.1:8300`.

Plain text never leaves this machine: an address that is not of the loopback interface is refused on both sides, unless
it is for TLS.
"""

import contextlib
import errno
import ipaddress
import os
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import grpc.aio

from hopper_common.startup import AddressRefused, make_private

# sockaddr_un.sun_path, less the closing NUL.
LONGEST_SOCKET_PATH = 103 if sys.platform == "darwin" else 107


def check_address(address: str) -> str:
    """
    Return the address in the form grpc takes.

    Raises:
        AddressRefused: Malformed, or not of this machine.
    """
    if address.startswith("unix:"):
        return unix_address(Path(address.removeprefix("unix:")))
    host, port = split_loopback(address)
    return join(host, port)


def unix_address(path: Path) -> str:
    """
    The address of a Unix socket.

    Raises:
        AddressRefused: The path is longer than the kernel takes.
    """
    if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
        raise AddressRefused(
            f"the socket path {path} is longer than the {LONGEST_SOCKET_PATH} bytes a Unix socket may have: "
            "choose a shorter data directory (HOPPER_DATA_DIR) or socket path (HOPPER_SOCKET)"
        )
    return f"unix:{path}"


def split_loopback(address: str) -> tuple[str, int]:
    """
    Split `host:port`, where host is a loopback address, in brackets for IPv6, or `localhost` (taken as
    127.0.0.1).

    Raises:
        AddressRefused: Malformed, or not a loopback address.
    """
    host, port = split(address)
    if not is_loopback(host):
        raise AddressRefused(
            f"{address} is not of this machine: plain text must not leave it; use 127.0.0.1, or TLS "
            "(a server: HOPPER_LISTEN_TLS, a client: HOPPER_CA_FILE)"
        )
    return host, port


def split(address: str) -> tuple[str, int]:
    """
    Split `host:port`, with an IPv6 address in brackets; `localhost` is taken as 127.0.0.1.

    Raises:
        AddressRefused: Malformed.
    """
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (colon and host) or not (port.isascii() and port.isdecimal() and int(port) <= 65535):
        raise AddressRefused(
            f"{address!r} is no address: write unix:/path, or host:port such as 127.0.0.1:8300"
        )
    return "127.0.0.1" if host == "localhost" else host, int(port)


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine can reach it."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def check_secure_address(address: str) -> str:
    """
    Return an address that is dialled with TLS, in the form grpc takes.

    Raises:
        AddressRefused: Malformed.
    """
    if address.startswith("unix:"):
        return unix_address(Path(address.removeprefix("unix:")))
    return join(*split(address))


def join(host: str, port: int) -> str:
    """`host:port`, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listen_tcp(server: grpc.aio.Server, address: str) -> str:
    """
    Bind a loopback port.

    Args:
        address: `host:port`; port 0 takes a free one.

    Returns:
        The address with the real port.

    Raises:
        AddressRefused: Not a loopback address, or the port is taken.
    """
    host, port = split_loopback(address)
    return _bind(host, port, server.add_insecure_port)


def listen_tls(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials) -> str:
    """
    Bind a port that speaks TLS. Arguments, result and errors as of `listen_tcp`, but any interface will do.

    Args:
        credentials: Good for this one port.
    """
    host, port = split(address)
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise AddressRefused(
            f"{address}: listen on the IP address of an interface, or on 0.0.0.0 or [::] for all of them"
        ) from None
    return _bind(host, port, lambda at: server.add_secure_port(at, credentials))


def _bind(host: str, port: int, add: Callable[[str], int]) -> str:
    _require_free(host, port)
    try:
        bound = add(join(host, port))
    except RuntimeError as error:  # taken in between, by someone quick
        raise AddressRefused(f"cannot listen on {join(host, port)}: {error}") from error
    return join(host, bound)


def _require_free(host: str, port: int) -> None:
    # grpc says no more than "failed to bind"; the operating system says why.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as grpc does: closed connections do not count
        try:
            probe.bind((host, port))
        except OSError as error:
            raise AddressRefused(f"cannot listen on {join(host, port)}: {_why(error, port)}") from error


def _why(error: OSError, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is taken; stop whoever has it, or choose another (HOPPER_LISTEN)"
    if error.errno == errno.EACCES:
        return f"port {port} is for root only; choose one above 1023 (HOPPER_LISTEN)"
    return str(error)


def listen_unix(
    server: grpc.aio.Server, path: Path, credentials: grpc.ServerCredentials | None = None
) -> str:
    """
    Bind a Unix socket that only this user can connect to.

    Args:
        credentials: For one that speaks TLS all the same. Default: plain text.

    A missing directory is made, for this user alone. The socket of a process that is gone is replaced.

    Returns:
        `unix:` and the path.

    Raises:
        AddressRefused: Somebody answers on the socket, something else is in its place, others may write to
        its directory, or the path is too long.
    """
    address = unix_address(path)
    make_private(path.parent)
    _remove_stale(path)
    try:
        if credentials is None:
            server.add_insecure_port(address)
        else:
            server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise AddressRefused(f"cannot listen on {path}: {error}") from error
    path.chmod(0o600)
    return address


def _remove_stale(path: Path) -> None:
    # grpc would replace whatever socket is there, also one that is in use.
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise AddressRefused(
            f"{path} is there and is no socket: remove it, or choose another (HOPPER_SOCKET)"
        )
    if _answers(path):
        raise AddressRefused(
            f"another process answers on {path}: stop it, or choose another data directory (HOPPER_DATA_DIR)"
        )
    path.unlink()


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except TimeoutError:  # somebody is behind it, too busy to accept
            return True
        except ConnectionRefusedError:  # bound once, and nobody is behind it now
            return False
        except OSError as error:
            raise AddressRefused(f"cannot tell who has {path}: {error}") from error
    return True
