"""What peers have signed, verified as it comes in: `ports.Opener` with the keys that are known here."""

from datetime import timedelta
from typing import Final

from hopper.federation.v1 import delegation_pb2 as pb
from hopper_common.clock import Clock
from hopper_federation.delegation.chain import KeysOf, UnlistedKey
from hopper_federation.delegation.model import OfferFacts
from hopper_federation.delegation.sealing import open_offer, open_result

KEYS_WITHIN: Final = timedelta(seconds=30)
"""How soon the keys of a peer that has new ones are known here."""


class Verifier:
    """
    Opens what is sealed.

    Args:
        own: This Hopper's install id.
    """

    def __init__(self, own: str, keys_of: KeysOf, clock: Clock) -> None:
        self._own = own
        self._keys_of = keys_of
        self._clock = clock

    def open_offer(self, peer: str, delegation: str, epoch: int, sealed: bytes) -> OfferFacts:
        """See `ports.Opener`."""
        try:
            return open_offer(
                pb.Offer.FromString(sealed),
                sender=peer,
                own=self._own,
                delegation=delegation,
                epoch=epoch,
                keys_of=self._keys_of,
                now=self._clock.now(),
            )
        except UnlistedKey as error:
            error.retry_after = KEYS_WITHIN
            raise

    def check_result(self, peer: str, offer: bytes, sealed: bytes) -> None:
        """See `ports.Opener`."""
        try:
            open_result(
                pb.Result.FromString(sealed),
                offer=pb.Offer.FromString(offer),
                sender=peer,
                own=self._own,
                keys_of=self._keys_of,
            )
        except UnlistedKey as error:
            error.retry_after = KEYS_WITHIN
            raise
