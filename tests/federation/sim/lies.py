"""
A Hopper that lies: it is paired, it signs what it says, and it says whatever it likes.

What it cannot do is what signatures keep it from: speak for another, or name another's task as its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hopper_federation.delegation.model import (
    Appraisal,
    Body,
    Cancel,
    Decision,
    Message,
    Note,
    Offer,
    OfferFacts,
    Outcome,
    Receipt,
    Renewal,
    Result,
    State,
    Update,
)
from hopper_federation.delegation.narrowing import NOBODY
from tests.federation.sim.sim_hopper import Cargo, SimHopper
from tests.federation.sim.sim_router import What

_REASONS = ("", "", "STALE_EPOCH", "DELEGATION_NOT_FOUND", "LEASE_LOST", "QUOTA", "NO_SUCH_REASON")


class LyingHopper(SimHopper):
    """See above."""

    lies = True

    def worded(self, messages: list[Message]) -> list[Message]:
        """Some of it, changed; and more of its own making."""
        if self.world.calm:
            return messages
        told = [self._changed(each) if self._may(0.2) else each for each in messages]
        return told + [self._invented(messages) for _ in range(self.world.rng.choice([0, 0, 1, 3]))]

    def take(self, peer: str, batch: Sequence[Message], incarnation: int) -> list[Receipt] | str:
        """What it answers need not be what it has done."""
        for message in batch:
            if isinstance(message.body, Offer) and message.body.facts is not None:
                self.world.exempt(message.body.facts.task_uid)
        answer = super().take(peer, batch, incarnation)
        if isinstance(answer, str):
            return answer
        return [self._receipt(each) if self._may(0.2) else each for each in answer]

    def compare(
        self, peer: str, notes: Sequence[Note], after: str, up_to: str, incarnation: int
    ) -> tuple[list[Note], list[str]] | str:
        """What it says that it knows need not be what it knows."""
        answer = super().compare(peer, notes, after, up_to, incarnation)
        if isinstance(answer, str):
            return answer
        told = [self._note(each) if self._may(0.3) else each for each in answer[0]]
        unknown = [each.delegation for each in told if self._may(0.1)]
        return told, answer[1] + unknown

    def _may(self, chance: float) -> bool:
        return self.world.rng.random() < chance

    def _anything(self) -> str:
        """The id of any hand-over, whosever it is."""
        known = [key[1] for hopper in self.world.hoppers.values() for key in hopper.tables.delegations]
        return self.world.rng.choice(known) if known else "none"

    def _changed(self, message: Message) -> Message:
        rng = self.world.rng
        changes: dict[str, Any] = rng.choice(
            [
                {"epoch": message.epoch + rng.choice([-1, 1])},
                {"delegation": self._anything()},
                {"sequence": rng.choice([0, 1, 1 << 60])},
                {"id": f"{self.name}x{self.world.number()}"},
                {} if isinstance(message.body, Offer) else {"body": self._body()},
            ]
        )
        return _digested(replace(message, **changes))

    def _invented(self, messages: list[Message]) -> Message:
        rng = self.world.rng
        ids = [each.id for each in messages]
        fresh = f"{self.name}x{self.world.number()}"
        return _digested(
            Message(
                id=rng.choice([fresh, fresh, *ids]),
                delegation=rng.choice([self._anything(), fresh]),
                epoch=rng.choice([1, 1, 2, 9]),
                sequence=rng.choice([1, 2, 3, 1 << 60]),
                body=self._body(),
            )
        )

    def _body(self) -> Body:
        rng = self.world.rng
        lie = f"lie{self.world.number()}".encode()
        made: list[Body] = [
            Result(rng.choice(list(Outcome)), lie),
            Decision(rng.random() < 0.5, rng.choice(_REASONS)),
            Update(rng.random() < 0.5, rng.random()),
            Renewal(),
            Cancel("a lie"),
            Appraisal(lie),
            self._offer_of_nothing(),
        ]
        return rng.choice(made)

    def _offer_of_nothing(self) -> Offer:
        rng, world = self.world.rng, self.world
        what = What(
            uid=f"{self.name}/lie{world.number()}",
            able=frozenset(world.hoppers),
            exclusive=rng.random() < 0.5,
            effort=rng.choice([1.0, 4000.0]),
            fails=False,
            lease=rng.choice([1.0, 120.0]),
            start=600.0,
            close=6000.0,
        )
        world.exempt(what.uid)
        path = rng.choice([(self.name,), (*sorted(world.hoppers)[:2], self.name)])
        facts = OfferFacts(
            sealed=what.uid.encode(),
            task_uid=what.uid,
            origin=path[0],
            path=path,
            lease=what.lease,
            exclusive=what.exclusive,
            title=world.load(Cargo(what, NOBODY, path)),
        )
        return Offer(facts.sealed, facts)

    def _receipt(self, receipt: Receipt) -> Receipt:
        rng = self.world.rng
        return Receipt(
            receipt.message,
            rng.choice([None, *State]),
            rng.choice(_REASONS),
            "a lie",
            rng.choice([None, None, 5.0]),
        )

    def _note(self, note: Note) -> Note:
        rng = self.world.rng
        return replace(
            note,
            state=rng.choice(list(State)),
            heard=rng.choice([0, note.heard, 1 << 62]),
            handed_over=rng.random() < 0.5,
            delegation=rng.choice([note.delegation, self._anything()]),
        )


def _digested(message: Message) -> Message:
    return replace(
        message,
        digest=repr((message.delegation, message.epoch, message.sequence, message.body)).encode(),
    )
