"""Memory as its host runs it: what it keeps, what it forgets, and that it runs alone."""

import asyncio
import os
import signal
import stat
import sys
from pathlib import Path

import grpc
import pytest

from hopper.memory.v1.episode_pb2 import Episode
from hopper.memory.v1.episodic_service_pb2 import GetEpisodeRequest, SearchSimilarRequest
from hopper.memory.v1.episodic_service_pb2_grpc import EpisodicMemoryServiceStub
from hopper.memory.v1.feedback_service_pb2 import GetStatsRequest
from hopper.memory.v1.working_service_pb2 import Context, GetContextRequest, PutContextRequest
from hopper_common.host import ServiceNotOpened
from hopper_common.rpc.channel import open_channel
from hopper_testing.clock import ManualClock
from tests.memory.harness import RunningMemory, refusal
from tests.memory.samples import decision
from tests.memory.test_servicer import BAD, episode, get, give, outcome, record

CODE = grpc.StatusCode


async def test_a_restart_keeps_everything_but_working_memory(memory: RunningMemory) -> None:
    await record(
        memory,
        episode(1, title="login"),
        episode(2, parent_decision=decision(1)),
        outcomes=[outcome(1), outcome(3)],
    )
    request_id = "6f1c3b0e-8f7e-4a59-9a54-0d1d3c1b2a11"
    given = await give(memory, 2, BAD, request_id)
    await memory.working.PutContext(PutContextRequest(context=Context(key="session")))
    before = [await get(memory, number) for number in (1, 2)]
    stats = await memory.feedback.GetStats(GetStatsRequest())

    await memory.restart()

    assert [await get(memory, number) for number in (1, 2)] == before
    assert await memory.feedback.GetStats(GetStatsRequest()) == stats
    found = await memory.episodes.SearchSimilar(SearchSimilarRequest(text="login"))
    assert [match.episode for match in found.matches] == before[:1]
    assert await give(memory, 2, BAD, request_id) == given
    await record(memory, episode(3))
    assert (await get(memory, 3)).outcome == Episode.OUTCOME_SUCCEEDED
    await refusal(
        memory.working.GetContext(GetContextRequest(key="session")),
        CODE.NOT_FOUND,
        "CONTEXT_NOT_FOUND",
        context="session",
    )


async def test_the_database_is_its_owners_alone(memory: RunningMemory) -> None:
    assert stat.S_IMODE((memory.directory / "memory.db").stat().st_mode) == 0o600


async def test_the_database_can_be_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOPPER_MEMORY_DATABASE", str(tmp_path / "disk" / "episodes.db"))
    memory = RunningMemory(tmp_path / "hopper", ManualClock())
    await memory.start()
    await record(memory, episode(1))
    await memory.close()
    assert (tmp_path / "disk" / "episodes.db").exists()
    assert not (tmp_path / "hopper" / "memory.db").exists()


async def test_a_server_is_refused_with_what_to_do_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOPPER_MEMORY_DATABASE", "postgresql://user:secret@host/db")
    memory = RunningMemory(tmp_path / "hopper", ManualClock())
    with pytest.raises(ExceptionGroup) as refused:
        await memory.start()
    (error,) = refused.value.exceptions
    assert isinstance(error, ServiceNotOpened)
    assert "set HOPPER_MEMORY_DATABASE to a file" in str(error)
    assert "secret" not in str(error)


async def test_it_runs_alone_as_a_process(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "hopper_memory",
        env=os.environ | {"HOPPER_DATA_DIR": str(tmp_path)},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        assert b"hopper (memory) listens on" in await process.stdout.readline()
        async with open_channel(f"unix:{tmp_path}/memory.sock") as channel:
            stub = EpisodicMemoryServiceStub(channel)
            await refusal(
                stub.GetEpisode(GetEpisodeRequest(decision=decision(1))),
                CODE.NOT_FOUND,
                "EPISODE_NOT_FOUND",
                decision=decision(1),
            )
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
