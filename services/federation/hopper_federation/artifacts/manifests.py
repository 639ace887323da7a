"""
What a result names: read where it comes in, and made where it goes out.

    the worker's Hopper:  files beside the task and what was made of it ─► `manifest_of` ─► signed with the result
    the task's Hopper:    a result was taken ─► `expect`, in the transaction of that ─► rows ─► Puller
"""

from collections.abc import Sequence
from dataclasses import replace

import structlog

from hopper.federation.v1 import delegation_pb2 as pb
from hopper_federation.artifacts.errors import ArtifactInvalid
from hopper_federation.artifacts.model import HASH_BYTES, MOST_FILES, File, Problem, check_claims, free_name
from hopper_federation.artifacts.store_sql import Artifacts, ArtifactStore, nearest
from hopper_federation.artifacts.tasks import Tasks
from hopper_federation.delegation.model import Delegation

log = structlog.get_logger(__name__)


def to_proto(file: File) -> pb.Artifact:
    """A file as messages have it."""
    return pb.Artifact(name=file.name, sha256=file.sha256, size=file.size, media_type=file.media_type)


def named_by(result: bytes) -> Sequence[pb.Artifact]:
    """
    What a result names.

    Args:
        result: A serialised `Result`, of which the signatures have been verified; empty: there is none.
    """
    return pb.ResultEnvelope.FromString(pb.Result.FromString(result).envelope.payload).artifacts


def expect(store: ArtifactStore, delegation: Delegation) -> int:
    """
    Write down what the result of a hand-over names, to be pulled from the peer: files beside the task that was handed
    over. Call it in the transaction in which the result is taken, and `Puller.look_soon` after that.

    Again, it changes nothing. What cannot be a file is written down as refused.

    Args:
        delegation: OUT, with its result.

    Returns:
        How many files.
    """
    named = named_by(delegation.result)
    if not named or store.expected(delegation.id):
        return 0
    if len(named) > MOST_FILES:
        log.warning("a result names too many files", delegation=delegation.id, files=len(named))
    taken = {file.name for file in store.beside([delegation.task])}
    for artifact in named[:MOST_FILES]:
        file = _expected(store, delegation, artifact)
        file = replace(file, name=free_name(file.name, taken))
        taken.add(file.name)
        store.save(file)
    return min(len(named), MOST_FILES)


def _expected(store: ArtifactStore, delegation: Delegation, artifact: pb.Artifact) -> File:
    file = File(
        task=delegation.task,
        name=artifact.name,
        sha256=artifact.sha256,
        size=artifact.size,
        media_type=artifact.media_type,
        create_time=store.now,
        stored=False,
        peer=delegation.peer,
        delegation=delegation.id,
    )
    try:
        check_claims(file.name, file.sha256, file.size, file.media_type)
        if not file.sha256:
            raise ArtifactInvalid(f"{file.name} has no SHA-256", artifact=file.name)
    except ArtifactInvalid as error:
        log.error(
            "a peer named a file that cannot be",
            peer=delegation.peer,
            delegation=delegation.id,
            message=error.message,
        )
        return replace(
            file,
            name="refused",
            sha256=bytes(HASH_BYTES),
            size=0,
            media_type="",
            problem=Problem.MALFORMED,
        )
    return file


async def manifest_of(files: Artifacts, tasks: Tasks, task: str) -> list[pb.Artifact]:
    """
    What a result of a task is to name: the files beside it and beside what was made of it, by name.

    Of several of one name, the one nearest to the task is meant. What was refused is left out; what has not come yet
    from a peer is not: its hash is known, and whoever asks for it waits.

    Raises:
        NotFound: There is no such task.
        ServiceUnavailable: The router does not answer.
    """
    chain = await tasks.below(task)
    found = nearest(await files.read(lambda store: store.beside(chain)), chain)
    named = [to_proto(file) for file in found.values() if file.stored or file.wanted]
    if len(named) > MOST_FILES:
        log.warning("files are left out of a result", task=task, files=len(named) - MOST_FILES)
    return named[:MOST_FILES]
