"""
The chain of custody of a hand-over: who said what was to be done, who handed it to whom, and who says how it ended.
Each is verified again, from the bytes that are kept.

What is kept about a hand-over beside these bytes must be what they say, or somebody has changed the database.
"""

from collections.abc import Callable, Iterator
from typing import Final

from google.protobuf.message import DecodeError

from hopper.federation.v1 import delegation_pb2 as dpb
from hopper.federation.v1.delegation_service_pb2 import CustodyLink
from hopper_common.identity.errors import SignatureInvalid
from hopper_common.timestamps import to_proto
from hopper_federation.delegation.chain import (
    KeysOf,
    Kind,
    Link,
    OfferChain,
    ResultChain,
    from_of,
    read_offer,
    read_result,
)
from hopper_federation.delegation.model import Delegation, Role

_ENDS: Final = {
    dpb.OUTCOME_SUCCEEDED: "has done it",
    dpb.OUTCOME_FAILED: "has failed at it",
    dpb.OUTCOME_CANCELLED: "has called it off",
}

NameOf = Callable[[str], str]
"""What a peer is called here, `peers/{peer}`; empty: it is none."""


def custody_of(delegation: Delegation, *, own: str, keys_of: KeysOf, name_of: NameOf) -> list[CustodyLink]:
    """
    Every signed statement about a hand-over, oldest first, and what is wrong with it. Nothing was signed of an offer
    that never came.

    Args:
        own: This Hopper's install id.
    """
    told = _Told(own, name_of)
    try:
        offer = dpb.Offer.FromString(delegation.offer)
        result = dpb.Result.FromString(delegation.result)
    except DecodeError:
        return [
            CustodyLink(kind=Kind.TASK, problem=SignatureInvalid.reason, text="what is kept cannot be read")
        ]
    if not delegation.offer:
        return []
    chain = read_offer(offer, keys_of)
    links = list(told.offer(chain))
    _add_problem(links[-1], _differs(delegation, chain, own))
    if delegation.result:
        ended = read_result(result, offer, keys_of)
        links += told.result(ended)
        _add_problem(links[-1], _ends_differently(delegation, ended))
    return links


def _differs(delegation: Delegation, chain: OfferChain, own: str) -> str:
    """What is kept of a hand-over that its offer does not say."""
    if not chain.hops:
        return ""
    hop = chain.hops[-1]
    ends = (own, delegation.peer) if delegation.role is Role.OUT else (delegation.peer, own)
    kept = (delegation.id, delegation.epoch, delegation.task_uid, delegation.exclusive, *ends)
    said = (
        hop.delegation,
        hop.epoch,
        chain.envelope.task_uid,
        chain.envelope.exclusive,
        from_of(hop),
        hop.to,
    )
    return "" if kept == said else "another hand-over is kept under this name"


def _ends_differently(delegation: Delegation, chain: ResultChain) -> str:
    kept = delegation.outcome
    said = dpb.Outcome.Name(chain.envelope.outcome).removeprefix("OUTCOME_")
    return "" if kept is None or kept == said else f"{kept} is kept of it"


def _add_problem(link: CustodyLink, problem: str) -> None:
    if problem and not link.problem:
        link.verified = False
        link.problem = SignatureInvalid.reason
        link.text = f"{link.text}, but {problem}"


class _Told:
    """Links in the words of people."""

    def __init__(self, own: str, name_of: NameOf) -> None:
        self._own = own
        self._name_of = name_of

    def offer(self, chain: OfferChain) -> Iterator[CustodyLink]:
        """What led here."""
        for link in chain.links:
            if link.kind is Kind.TASK:
                yield self._link(link, f"{self._who(link.signer)} says what is to be done")
            else:
                yield self._passed(link, "hands it over to")

    def result(self, chain: ResultChain) -> Iterator[CustodyLink]:
        """What came of it."""
        for link in chain.links:
            if link.kind is Kind.COUNTERSIGN:
                yield self._passed(link, "passes the result on to")
            else:
                end = _ENDS.get(chain.envelope.outcome, "says something of how it ended")
                yield self._link(link, f"{self._who(link.signer)} {end}")

    def _passed(self, link: Link, verb: str) -> CustodyLink:
        return self._link(link, f"{self._who(link.signer)} {verb} {self._who(link.to)}")

    def _link(self, link: Link, text: str) -> CustodyLink:
        problem = link.problem
        return CustodyLink(
            kind=link.kind,
            signer=link.signer,
            peer=self._name_of(link.signer),
            verified=link.verified,
            problem="" if problem is None else problem.reason,
            to=link.to,
            time=to_proto(link.time),
            text=text if problem is None else f"{text}, but {problem.message}",
        )

    def _who(self, install_id: str) -> str:
        if install_id == self._own:
            return "this Hopper"
        name = self._name_of(install_id)
        return name.removeprefix("peers/") if name else f"a Hopper that is not known here ({install_id[:8]})"
