"""
A look at whoever answers at an address, without trusting anything: what to tell a person when TLS says nothing.

In TLS 1.3 a client is let go with "socket closed" whatever the reason, and gRPC says no more than that. So this looks
step by step, as far as one can see from outside: is there such a name, does the port answer, is it TLS, what
certificate does it show.
"""

import asyncio
import contextlib
import socket
import ssl
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Final

from cryptography import x509

_MOST_SECONDS: Final = 5.0


class Found(StrEnum):
    """How far a look got."""

    NO_SUCH_HOST = "no such host"
    NO_ROUTE = "no route"
    PORT_CLOSED = "port closed"
    SILENT = "silent"
    NO_TLS = "no TLS"
    TLS = "TLS"


@dataclass(frozen=True, slots=True)
class Sight:
    """
    What was seen.

    Attributes:
        detail: What the operating system or TLS said, for people.
        leaf: The certificate that was shown. Nothing about it has been verified, but that who showed it has its key.
        version: `TLSv1.3`.
    """

    found: Found
    detail: str = ""
    leaf: x509.Certificate | None = None
    version: str = ""


async def look_at(address: str, *, patience: timedelta = timedelta(seconds=_MOST_SECONDS)) -> Sight:
    """
    Connect, shake hands, and hang up.

    Args:
        address: host:port.
        patience: For each of the steps.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    seconds = patience.total_seconds()
    try:
        async with asyncio.timeout(seconds):
            _, writer = await asyncio.open_connection(host, int(port))
    except (OSError, UnicodeError) as error:
        return Sight(_unreached(error), str(error) or f"no answer in {seconds:g} s")
    await _close(writer)
    try:
        async with asyncio.timeout(seconds):
            return await _shake_hands(host, int(port))
    except TimeoutError:
        return Sight(Found.SILENT, f"the port takes connections, but no handshake was done in {seconds:g} s")
    except (ssl.SSLError, OSError, ValueError, x509.InvalidVersion) as error:
        return Sight(Found.NO_TLS, str(error))


def _unreached(error: OSError | UnicodeError) -> Found:
    if isinstance(error, socket.gaierror | UnicodeError):
        return Found.NO_SUCH_HOST
    if isinstance(error, ConnectionRefusedError):
        return Found.PORT_CLOSED
    return Found.SILENT if isinstance(error, TimeoutError) else Found.NO_ROUTE


async def _shake_hands(host: str, port: int) -> Sight:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Nothing is sent here, and nothing believed: what the certificate is worth is judged afterwards.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection(host, port, ssl=context)
    try:
        connection: ssl.SSLObject = writer.get_extra_info("ssl_object")
        shown = connection.getpeercert(binary_form=True)
        leaf = x509.load_der_x509_certificate(shown) if shown else None
        return Sight(Found.TLS, leaf=leaf, version=connection.version() or "")
    finally:
        await _close(writer)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with contextlib.suppress(OSError, ssl.SSLError):
        await writer.wait_closed()
