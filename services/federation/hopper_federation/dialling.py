"""
Calls to the pairing port of a Hopper that this one cannot know yet.

gRPC verifies a server by roots that are given in advance, and when it refuses one it says no more than that the socket
was closed. So the certificate is looked at first, in a handshake that verifies nothing and in which nothing is said;
then it is checked here, where what is wrong has a name; and then the call goes over a channel that accepts this one
certificate and no other.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final, TypeVar

import grpc
import grpc.aio
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from hopper.federation.v1.pairing_service_pb2_grpc import PairingServiceStub
from hopper_common.errors import HopperError, RateLimited, Unavailable
from hopper_common.identity.certificates import BACKDATED, spiffe_uris
from hopper_common.identity.spiffe import SpiffeId, SpiffeInvalid, install_id_of_domain
from hopper_common.rpc.errors import DeadlineExceeded, from_rpc_error
from hopper_federation import addresses
from hopper_federation.errors import ClockSkew, PeerImpostor, PeerUnreachable

if TYPE_CHECKING:  # it is in the type stubs only
    from hopper.federation.v1.pairing_service_pb2_grpc import PairingServiceAsyncStub

HANDSHAKE_SECONDS: Final = 5.0
CALL_SECONDS: Final = 10.0
MOST_WAITS: Final = 4
LONGEST_WAIT: Final = 2.0
SERVICE_PATH: Final = "/svc/federation"

T = TypeVar("T")

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", 256 * 1024),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # a pinned certificate belongs to one channel
)


@dataclass(frozen=True, slots=True)
class Shown:
    """
    The certificate that somebody shows at an address, and who it says that is.

    Attributes:
        leaf: As DER.
    """

    address: str
    leaf: bytes
    certificate: x509.Certificate
    install_id: str

    def check_issued_by(self, root_key: bytes) -> None:
        """
        Check that it was issued by a root.

        Args:
            root_key: The root's public key, a compressed point of P-256.

        Raises:
            PeerImpostor: It was not.
        """
        try:
            key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), root_key)
            key.verify(
                self.certificate.signature, self.certificate.tbs_certificate_bytes, ec.ECDSA(hashes.SHA256())
            )
        except (InvalidSignature, ValueError):
            raise _impostor(
                self.address, "the root that the invitation names", "another root's certificate"
            ) from None

    def check_is(self, install_id: str) -> None:
        """
        Check who it says that is.

        Raises:
            PeerImpostor: Somebody else.
        """
        if self.install_id != install_id:
            raise _impostor(self.address, install_id, self.install_id)

    def check_times(self, now: datetime) -> None:
        """
        Check that it is valid here and now.

        Raises:
            ClockSkew: It is not: leaves are renewed long before their end, so one of the clocks is wrong.
        """
        begin, end = self.certificate.not_valid_before_utc, self.certificate.not_valid_after_utc
        if begin <= now < end:
            return
        offset = begin + BACKDATED - now if now < begin else end - now
        raise ClockSkew(
            f"the certificate at {self.address} is valid from {begin} to {end}, and here it is {now}: "
            "set the clock that is wrong",
            offset_seconds=str(round(offset.total_seconds())),
            limit_seconds="300",
        )


async def look(address: str, *, timeout: float = HANDSHAKE_SECONDS) -> Shown:
    """
    See which certificate is shown at an address. Nothing is verified but its form.

    Raises:
        PeerUnreachable: Nobody answers there, or not with TLS 1.3.
        PeerImpostor: The certificate is not one of a Hopper's federation service.
        ValueError: It is no address.
    """
    host, port = addresses.split(address)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        async with asyncio.timeout(timeout):
            _, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname="")
    except (OSError, TimeoutError) as error:  # ssl's errors are OSErrors
        raise unreachable(address, _cause(error)) from error
    try:
        leaf = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    finally:
        writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1):
                await writer.wait_closed()
    return _read(address, leaf or b"")


def _read(address: str, leaf: bytes) -> Shown:
    try:
        certificate = x509.load_der_x509_certificate(leaf)
        (uri,) = spiffe_uris(certificate)
        name = SpiffeId.parse(uri)
        install_id = install_id_of_domain(name.trust_domain)
    except (SpiffeInvalid, ValueError, x509.InvalidVersion):
        raise _impostor(address, "a Hopper", "a certificate that is no Hopper's") from None
    if name.path != SERVICE_PATH:
        raise _impostor(address, f"a Hopper's {SERVICE_PATH}", f"a Hopper's {name.path or 'root'}")
    return Shown(address, leaf, certificate, install_id)


@asynccontextmanager
async def pinned(shown: Shown) -> AsyncIterator["PairingServiceAsyncStub"]:
    """What who showed that certificate offers to strangers."""
    async with channel(shown) as opened:
        yield PairingServiceStub(opened)


def channel(shown: Shown) -> grpc.aio.Channel:
    """A channel to who showed that certificate, and to nobody else."""
    credentials = grpc.ssl_channel_credentials(shown.certificate.public_bytes(Encoding.PEM))
    name = f"federation.{shown.install_id}.hopper"
    options = (*_OPTIONS, ("grpc.ssl_target_name_override", name))
    return grpc.aio.secure_channel(shown.address, credentials, options=options)


async def called(address: str, call: Callable[[], Awaitable[T]]) -> T:
    """
    The answer of a call. Who is told to wait a moment, because callers are counted, waits.

    Raises:
        PeerUnreachable: There was none.
        HopperError: What the other answered instead.
    """
    for _ in range(MOST_WAITS):
        try:
            return await _once(address, call)
        except RateLimited as limited:
            wait = LONGEST_WAIT if limited.retry_after is None else limited.retry_after.total_seconds()
            await asyncio.sleep(min(wait, LONGEST_WAIT))
    return await _once(address, call)


async def _once(address: str, call: Callable[[], Awaitable[T]]) -> T:
    try:
        return await call()
    except grpc.aio.AioRpcError as error:
        problem = from_rpc_error(error)
        if isinstance(problem, Unavailable | DeadlineExceeded) and problem.reason not in _TOLD:
            raise unreachable(address, error.details() or "no answer") from error
        raise _theirs(address, problem) from error


# What the other end said itself, and not gRPC of it.
_TOLD: Final = frozenset({"TRUST_STORE_STALE", "STORAGE_UNAVAILABLE"})


def _theirs(address: str, problem: HopperError) -> HopperError:
    problem.message = f"{address} answers: {problem.message}"
    return problem


def unreachable(address: str, cause: str) -> PeerUnreachable:
    """Nobody answers."""
    return PeerUnreachable(
        f"nobody answers at {address}: {cause}; is the other up, its pairing port open, and no firewall between?",
        peer=address,
        cause=cause,
    )


def _impostor(address: str, expected: str, found: str) -> PeerImpostor:
    return PeerImpostor(
        f"who answers at {address} is not who was expected: {found} instead of {expected}",
        expected=expected,
        found=found,
    )


def _cause(error: OSError | TimeoutError) -> str:
    if isinstance(error, ssl.SSLError):
        return f"no TLS 1.3 there ({(error.reason or 'handshake failed').lower().replace('_', ' ')})"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return (error.strerror or type(error).__name__).lower()
