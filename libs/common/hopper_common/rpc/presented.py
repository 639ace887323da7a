"""
The certificate that a caller has shown, checked again with every call.

The handshake has verified it once, against all roots of all peers together, and a connection outlives it. So each call
asks anew: exactly one SPIFFE id, TLS 1.3, issued by a root *of the trust domain that it names*, and valid now. What was
read of a certificate is kept.

Only `peer_spiffe_id` is read: gRPC mixes all kinds of names in `peer_identities`, where a DNS name can spell somebody
else's SPIFFE id.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509

from hopper_common.errors import BadSan, IssuerMismatch, LeafExpired, TlsTooOld, Unauthenticated
from hopper_common.identity.certificates import issued_by, may_issue
from hopper_common.identity.spiffe import SpiffeId, SpiffeInvalid

_MOST_KEPT: Final = 4_096
_TLS: Final = b"TLSv1.3"


@dataclass(slots=True, eq=False)
class Presented:
    """
    A certificate whose signature was verified.

    Attributes:
        generation: That of the roots then.
        valid_until: When to look at the time of day again, on the clock that never steps: a second from the last look,
            or when it runs out, if that is sooner.
    """

    name: SpiffeId
    not_before: datetime
    not_after: datetime
    pem: bytes
    generation: int
    valid_until: float = -math.inf

    def look(self, now: datetime, monotonic: float) -> None:
        """
        Raises:
            LeafExpired: It is not valid now.
        """
        if not self.not_before <= now < self.not_after:
            raise LeafExpired(
                not_before=self.not_before.isoformat(timespec="seconds"),
                not_after=self.not_after.isoformat(timespec="seconds"),
            )
        self.valid_until = monotonic + min(1.0, (self.not_after - now).total_seconds())


class Certificates:
    """
    The certificates of callers on one port.

    Args:
        roots_of: The roots of a trust domain; none: nobody of it is let in. Asked again when *generation* grows.
        generation: Grows with every change of any roots.
        now: UTC, the time of day that certificates go by.
        monotonic: Seconds, of a clock that never steps.
    """

    def __init__(
        self,
        roots_of: Callable[[str], Sequence[x509.Certificate]],
        generation: Callable[[], int],
        now: Callable[[], datetime],
        monotonic: Callable[[], float],
    ) -> None:
        self._roots_of = roots_of
        self._generation = generation
        self._now = now
        self._monotonic = monotonic
        self._kept: OrderedDict[bytes, Presented] = OrderedDict()
        self._last: Presented | None = None

    def presented(self, auth: Mapping[str, Sequence[bytes]]) -> Presented:
        """
        Check what the handshake has left behind.

        Args:
            auth: `context.auth_context()`.

        Raises:
            Unauthenticated: There is no certificate.
            TlsTooOld, BadSan, IssuerMismatch, LeafExpired: What is wrong with it.
        """
        pems, versions = auth.get("x509_pem_cert", ()), auth.get("ssl_tls_version", ())
        if len(pems) != 1:
            raise Unauthenticated("there is no client certificate")
        if len(versions) != 1 or versions[0] != _TLS:
            raise TlsTooOld(version=b" ".join(versions).decode(errors="replace"))
        presented = self._last  # often the same caller's: comparing is quicker than hashing
        if presented is None or presented.pem != pems[0]:
            presented = self._last = self._kept.get(pems[0])
        if presented is None or presented.generation != self._generation():
            presented = self._keep(self._verified(pems[0], auth.get("peer_spiffe_id", ())))
        if self._monotonic() >= presented.valid_until:
            presented.look(self._now(), self._monotonic())
        return presented

    def again(self, presented: Presented) -> Presented:
        """
        The same as it is now, for calls that are under way.

        Raises:
            The same as `presented`.
        """
        if presented.generation != self._generation():
            presented = self._keep(self._verified(presented.pem, [str(presented.name).encode()]))
        if self._monotonic() >= presented.valid_until:
            presented.look(self._now(), self._monotonic())
        return presented

    def _keep(self, presented: Presented) -> Presented:
        if len(self._kept) >= _MOST_KEPT:
            self._kept.popitem(last=False)
        self._kept[presented.pem] = self._last = presented
        return presented

    def _verified(self, pem: bytes, names: Sequence[bytes]) -> Presented:
        generation = self._generation()  # before the roots: a change in between is noticed at the next call
        name = _only(names)
        leaf = x509.load_pem_x509_certificate(pem)
        if not issued_by(leaf, self._roots_of(name.trust_domain)):
            raise IssuerMismatch(trust_domain=name.trust_domain)
        if may_issue(leaf):  # TLS does not mind
            raise BadSan(problem="the certificate of an authority, which names nobody who calls")
        return Presented(name, leaf.not_valid_before_utc, leaf.not_valid_after_utc, pem, generation)


def _only(names: Sequence[bytes]) -> SpiffeId:
    # gRPC gives none where the certificate has none, several, or a further URI.
    if len(names) != 1:
        raise BadSan(problem="not exactly one SPIFFE id")
    try:
        return SpiffeId.parse(names[0].decode())
    except (SpiffeInvalid, UnicodeDecodeError) as error:
        raise BadSan(problem="not a SPIFFE id of the strict form") from error
