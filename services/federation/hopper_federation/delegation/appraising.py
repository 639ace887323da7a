"""
Tells this Hopper's memory how work that crossed went: what the result says that came back, and what the peer says that
it came from.
"""

import uuid
from typing import TYPE_CHECKING, Final

import grpc.aio

from hopper.federation.v1 import delegation_pb2 as dpb
from hopper.memory.v1.episode_pb2 import Feedback
from hopper.memory.v1.feedback_service_pb2 import SubmitFeedbackRequest
from hopper.memory.v1.feedback_service_pb2_grpc import FeedbackServiceStub
from hopper_common.text import one_line
from hopper_common.timestamps import duration_field, to_proto
from hopper_federation.delegation.calls import CALL_SECONDS, made
from hopper_federation.delegation.claims import Claims
from hopper_federation.delegation.model import Delegation, Outcome, Role
from hopper_federation.trust import Level
from hopper_federation.trust_snapshot import TrustSnapshots

if TYPE_CHECKING:  # it is in the type stubs only
    from hopper.memory.v1.feedback_service_pb2_grpc import FeedbackServiceAsyncStub

_NAMESPACE: Final = uuid.UUID("f4d0c2a8-0b0e-5a53-8a3e-2f7d3f4b9f11")
_MOST_COMMENT: Final = 1000
_MOST_AUTHOR: Final = 63
_LONGEST_EFFORT: Final = 31_622_400.0


class Appraiser:
    """Speaks to memory."""

    def __init__(self, memory: grpc.aio.Channel, claims: Claims, snapshots: TrustSnapshots) -> None:
        self._feedback: FeedbackServiceAsyncStub = FeedbackServiceStub(memory)
        self._claims = claims
        self._snapshots = snapshots

    async def appraise(self, about: Delegation) -> None:
        """
        Tell what there is to tell of a hand-over; a repeat changes nothing.

        Raises:
            HopperError: It has not been told.
        """
        peer = self._snapshots.current.peers.get(about.peer)
        feedback = feedback_of(about, believed=peer is not None and peer.may(Level.TRUSTED))
        task = await self._claims.task(about.task) if about.task else None
        if feedback is None or task is None or not task.decision:
            return
        name = about.peer if peer is None else peer.name.removeprefix("peers/")
        feedback.author = f"peer.{name}"[:_MOST_AUTHOR]
        content = feedback.SerializeToString(deterministic=True).hex()
        said = about.heard if about.appraisal else 0  # who changes its mind and changes it back says it again
        request = SubmitFeedbackRequest(
            decision=task.decision,
            feedback=feedback,
            request_id=str(uuid.uuid5(_NAMESPACE, f"{about.role}/{about.id}/{said}/{content}")),
        )
        await made(self._feedback.SubmitFeedback(request, timeout=CALL_SECONDS))


def feedback_of(about: Delegation, *, believed: bool) -> Feedback | None:
    """
    What is known of how it went; None: nothing.

    Args:
        believed: What the peer says of it counts.
    """
    if about.appraisal and believed:
        return _of_appraisal(dpb.Appraisal.FromString(about.appraisal))
    if about.role is Role.OUT and about.outcome is Outcome.SUCCEEDED and about.result:
        return _of_result(dpb.Result.FromString(about.result))
    return None


def _of_result(result: dpb.Result) -> Feedback:
    envelope = dpb.ResultEnvelope.FromString(result.envelope.payload)
    feedback = Feedback(match=Feedback.MATCH_GOOD, rework=envelope.attempts > 1)
    effort = duration_field(envelope, "effort")
    if effort is not None and 0 < effort.total_seconds() <= _LONGEST_EFFORT:
        feedback.actual_effort.CopyFrom(to_proto(effort))
    return feedback


def _of_appraisal(appraisal: dpb.Appraisal) -> Feedback:
    feedback = Feedback(comment=one_line(appraisal.comment, most_bytes=_MOST_COMMENT))
    if appraisal.HasField("good_match"):
        feedback.match = Feedback.MATCH_GOOD if appraisal.good_match else Feedback.MATCH_BAD
    if appraisal.HasField("quality") and 0 <= appraisal.quality <= 1:
        feedback.quality = appraisal.quality
    return feedback
