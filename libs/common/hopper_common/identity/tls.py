"""
gRPC's credentials, made from an identity.

A server's are dynamic: gRPC asks for them at every handshake, on a thread of its own, and keeps the old ones if the
answer fails or makes no sense. So the answer is made of what is in memory, is checked before it is given, and is only
given when it has changed. That gRPC then goes on with roots that should be gone is why each call is checked again.

A client's cannot be changed once a channel is open: a channel of `open_secure_channel` opens a new connection beneath
when the leaf or the roots have changed, and lets calls under way finish on the old one.
"""

from collections.abc import Callable, Sequence
from typing import Final

import grpc
import grpc.aio
import structlog
from cryptography import x509

from hopper_common.identity.certificates import Leaf, to_pem
from hopper_common.identity.following import FollowingChannel
from hopper_common.identity.store import Identity
from hopper_common.rpc.channel import OPTIONS

log = structlog.get_logger(__name__)

ROUTER: Final = "/svc/router"


def own_roots(identity: Identity) -> bytes:
    """What this Hopper's own services trust, as gRPC takes it."""
    return to_pem(identity.roots())


def server_credentials(
    identity: Identity,
    path: str,
    client_roots: Callable[[], bytes],
    *,
    require_client: bool = True,
) -> grpc.ServerCredentials:
    """
    Credentials for one port, which follow the identity and the roots. Make new ones for each port.

    Args:
        path: Whose leaf the server shows.
        client_roots: Roots of clients, as PEM: a ready value, without waiting. Called at every handshake.
        require_client: Whether clients must show a certificate. If not, they are not even asked for one.

    Raises:
        IdentityRefused: There is no leaf to show.
    """
    identity.leaf(path)
    offered = _Offered(identity, path, client_roots)
    return grpc.dynamic_ssl_server_credentials(
        offered.first(),
        offered.if_changed,  # type: ignore[arg-type]  # the stubs forget that None means "as before"
        require_client_authentication=require_client,
    )


class _Offered:
    """What a server offers in handshakes, and whether it is something else than before."""

    def __init__(self, identity: Identity, path: str, client_roots: Callable[[], bytes]) -> None:
        self._identity = identity
        self._path = path
        self._client_roots = client_roots
        self._last: tuple[Leaf, bytes] | None = None

    def first(self) -> grpc.ServerCertificateConfiguration:
        leaf, roots = self._identity.leaf(self._path), self._client_roots()
        made = _configuration(leaf, roots)
        self._last = leaf, roots
        return made

    def if_changed(self) -> grpc.ServerCertificateConfiguration | None:
        """A configuration, or None for the one before. Never raises: gRPC would only write it to standard error."""
        try:
            leaf, roots = self._identity.held_leaf(self._path), self._client_roots()
            if leaf is None or self._last == (leaf, roots):
                return None
            made = _configuration(leaf, roots)
        except Exception as error:
            log.error("the certificates for handshakes are not renewed", path=self._path, error=repr(error))
            return None
        self._last = leaf, roots
        return made


def _configuration(leaf: Leaf, roots: bytes) -> grpc.ServerCertificateConfiguration:
    # Read and written anew: gRPC silently drops whatever comes after a certificate that it cannot read.
    sound = to_pem(x509.load_pem_x509_certificates(roots)) if roots.strip() else b""
    return grpc.ssl_server_certificate_configuration(
        [(leaf.key_pem, leaf.chain_pem)], root_certificates=sound
    )


def channel_credentials(identity: Identity, path: str, roots_pem: bytes) -> grpc.ChannelCredentials:
    """
    Credentials for one channel: they stay what they are, so the channel is good for the leaf's life.

    Args:
        path: Whose leaf the client shows.
        roots_pem: What the server is verified with; only this server's roots.
    """
    leaf = identity.leaf(path)
    return grpc.ssl_channel_credentials(roots_pem, leaf.key_pem, leaf.chain_pem)


def open_secure_channel(
    address: str,
    identity: Identity,
    service: str,
    *,
    path: str = ROUTER,
    interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
) -> grpc.aio.Channel:
    """
    Open a channel to a service of this Hopper. It connects with its first call, and follows the identity.

    Args:
        service: Which one must answer: `registry`.
        path: Whose leaf is shown.

    Raises:
        IdentityRefused: There is no leaf to show.
    """
    options = (*OPTIONS, ("grpc.ssl_target_name_override", f"{service}.{identity.trust_domain}"))

    def dial() -> grpc.aio.Channel:
        credentials = channel_credentials(identity, path, own_roots(identity))
        return grpc.aio.secure_channel(address, credentials, options=options, interceptors=interceptors)

    def shown() -> object:
        return identity.held_leaf(path), own_roots(identity)

    return FollowingChannel(dial, lambda: identity.generation, shown)
