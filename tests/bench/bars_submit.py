"""B1 to B6: taking tasks in, durably and routed among 1,000 projects, beside a bare echo and bare inserts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

import grpc.aio

from hopper.memory.v1.episode_pb2 import Feedback
from hopper.memory.v1.feedback_service_pb2 import SubmitFeedbackRequest
from hopper.memory.v1.feedback_service_pb2_grpc import FeedbackServiceStub
from hopper.router.v1.decision_pb2 import Policy
from hopper.router.v1.routing_service_pb2 import UpdatePolicyRequest
from hopper.router.v1.routing_service_pb2_grpc import RoutingServiceStub
from hopper_common.rpc.channel import open_channel
from tests.bench import driving, message
from tests.bench.bar import Result, at_least, at_most, bar
from tests.bench.load import Side
from tests.bench.rawsql import RawPostgres
from tests.bench.rig import ENGINE, Rig, Router, Target

if TYPE_CHECKING:  # it is in the type stubs only
    from hopper.memory.v1.feedback_service_pb2_grpc import FeedbackServiceAsyncStub

CALLERS: Final = 64
LESSONS: Final = 200


@bar
async def submit(rig: Rig) -> Sequence[Result]:
    """B1, B2, B4, B6: throughput of single tasks, by calls and by stream."""
    async with AsyncExitStack() as stack:
        router = await stack.enter_async_context(rig.router())
        single = await stack.enter_async_context(rig.router(group_limit=1))
        sides = [
            Side(
                "echo c64",
                lambda seconds: driving.submit(rig.echo, CALLERS, seconds),
                {"server": rig.echo.pid},
            ),
            Side(
                "hopper c64", lambda seconds: driving.submit(router, CALLERS, seconds), router.processes(rig)
            ),
            Side("hopper c16", lambda seconds: driving.submit(router, 16, seconds), router.processes(rig)),
            Side(
                "hopper c64, a commit each",
                lambda seconds: driving.submit(single, CALLERS, seconds),
                single.processes(rig),
            ),
            Side(
                "echo stream",
                lambda seconds: driving.submit_stream(rig.echo, seconds),
                {"server": rig.echo.pid},
            ),
        ]
        trouble = await _trouble_with_streams(router)
        if not trouble:
            sides.append(
                Side(
                    "hopper stream",
                    lambda seconds: driving.submit_stream(router, seconds),
                    router.processes(rig),
                )
            )
        rounds = await rig.bench().interleaved(*sides)
    results = [
        at_least(0.50, 0.65).judge(
            f"B1 SubmitTask c64 ({ENGINE}) / bare echo c64",
            rounds.ratio("hopper c64", "echo c64"),
            rounds.figures("hopper c64", "hopper c16", "echo c64"),
            note=rounds.method,
        ),
        at_most(2.0, 1.5).judge(
            "B2 its server's processor time / bare echo's",
            rounds.cpu("hopper c64", "router") / rounds.cpu("echo c64", "server"),
            rounds.figures("hopper c64", "echo c64"),
            note=rounds.method,
        ),
        at_least(1.4, 1.8).judge(
            "B4 SubmitTask c64 / the same with a commit for each",
            rounds.ratio("hopper c64", "hopper c64, a commit each"),
            rounds.figures("hopper c64", "hopper c64, a commit each"),
            note=rounds.method,
        ),
    ]
    if not trouble:
        results.append(
            at_least(1.2, 1.5).judge(
                "B6 SubmitStream, 256 in flight / SubmitTask c64",
                rounds.ratio("hopper stream", "hopper c64"),
                rounds.figures("hopper stream", "hopper c64", "echo stream"),
                note=rounds.method,
            )
        )
    else:
        results.append(_not_offered(trouble, rounds.figures("echo stream", "hopper c64")))
    return results


async def _trouble_with_streams(router: Target) -> str:
    """Why the router cannot be measured with a stream; "" if it can."""
    try:
        await driving.submit_stream(router, 0.05)
    except grpc.aio.AioRpcError as error:
        return f"SubmitStream ends with {error.code().name}"
    return ""


def _not_offered(trouble: str, sides: dict[str, dict[str, float]]) -> Result:
    return Result(
        "B6 SubmitStream, 256 in flight / SubmitTask c64",
        0.0,
        "x",
        must=">= 1.2 x",
        target=">= 1.5 x",
        ok=False,
        verdict=f"missed: {trouble}",
        sides=sides,
    )


@bar
async def submit_latency(rig: Rig) -> Sequence[Result]:
    """B3: what one caller waits, beyond a bare echo and a bare insert."""
    async with AsyncExitStack() as stack:
        router = await stack.enter_async_context(rig.router())
        raw = await stack.enter_async_context(RawPostgres.open(rig.database()))
        rounds = await rig.bench().interleaved(
            Side("echo c1", lambda seconds: driving.submit(rig.echo, 1, seconds), {"server": rig.echo.pid}),
            Side("hopper c1", lambda seconds: driving.submit(router, 1, seconds), router.processes(rig)),
            Side("insert c1", lambda seconds: raw.insert(1, seconds), {"postgres": rig.postgres.pid}),
            Side("insert c16", lambda seconds: raw.insert(16, seconds), {"postgres": rig.postgres.pid}),
        )
    beyond = rounds.p50("hopper c1") - rounds.p50("echo c1") - rounds.p50("insert c1")
    return [
        at_most(0.5, 0.3, "ms").judge(
            f"B3 SubmitTask p50 c1 ({ENGINE}) - (echo c1 + raw insert c1)",
            beyond * 1e3,
            rounds.figures(),
            note=rounds.method,
            skipped=rounds.skipped,
        )
    ]


@bar
async def submit_batches(rig: Rig) -> Sequence[Result]:
    """B5: batches of 1,000, beside rows unnested by bare asyncpg."""
    async with AsyncExitStack() as stack:
        router = await stack.enter_async_context(rig.router())
        raw = await stack.enter_async_context(RawPostgres.open(rig.database(), connections=1))
        floors = [
            Side(
                f"unnest {rows}",
                lambda seconds, rows=rows: raw.insert_many(rows, seconds),  # type: ignore[misc]
                {"postgres": rig.postgres.pid},
            )
            for rows in (10, 100, 1000)
        ]
        rounds = await rig.bench().interleaved(
            *floors,
            Side(
                "hopper 1000 x 2",
                lambda seconds: driving.submit_batches(router, 1000, 2, seconds),
                router.processes(rig),
            ),
            Side(
                "hopper 100 x 2",
                lambda seconds: driving.submit_batches(router, 100, 2, seconds),
                router.processes(rig),
            ),
        )
    return [
        at_least(0.40, 0.55).judge(
            f"B5 SubmitTasks of 1,000, 2 in flight ({ENGINE}) / raw unnest of 1,000",
            rounds.ratio("hopper 1000 x 2", "unnest 1000"),
            rounds.figures(),
            note=rounds.method,
        )
    ]


@bar
async def submit_learned(rig: Rig) -> Sequence[Result]:
    """B1 once more where what was learned decides: with texts that are known by then, and with new ones."""
    async with AsyncExitStack() as stack:
        router = await stack.enter_async_context(rig.router())
        learned = await stack.enter_async_context(rig.router())
        await _teach(rig, learned)
        rounds = await rig.bench().interleaved(
            Side(
                "echo c64",
                lambda seconds: driving.submit(rig.echo, CALLERS, seconds),
                {"server": rig.echo.pid},
            ),
            Side("rules", lambda seconds: driving.submit(router, CALLERS, seconds), router.processes(rig)),
            Side(
                "learned", lambda seconds: driving.submit(learned, CALLERS, seconds), learned.processes(rig)
            ),
            Side(
                "learned, new texts",
                lambda seconds: driving.submit_new(learned, CALLERS, seconds),
                learned.processes(rig),
            ),
        )
    return [
        at_least(0.50, 0.65).judge(
            f"B1 SubmitTask c64 ({ENGINE}), decided by what was learned / bare echo c64",
            rounds.ratio("learned", "echo c64"),
            rounds.figures(),
            note=rounds.method,
        ),
        Result(
            "SubmitTask c64, decided by what was learned / by rules",
            round(rounds.ratio("learned", "rules"), 3),
            "x",
        ),
        Result(
            "SubmitTask c64, decided by what was learned, new texts / by rules",
            round(rounds.ratio("learned, new texts", "rules"), 3),
            "x",
        ),
        Result(
            "its router's processor time, decided by what was learned / by rules",
            round(rounds.cpu("learned", "router") / rounds.cpu("rules", "router"), 3),
            "x",
        ),
    ]


async def _teach(rig: Rig, router: Router) -> None:
    """Let what was learned decide, and let there be something: a lesson for each of some projects."""
    policy = Policy(name=f"{message.ROOT}/policy", source="strategy: learned")
    async with (
        asyncio.timeout(60),
        open_channel(router.socket) as channel,
        open_channel(rig.memory.address) as memory,
    ):
        await RoutingServiceStub(channel).UpdatePolicy(UpdatePolicyRequest(policy=policy))
        feedback = FeedbackServiceStub(memory)
        for topic in range(LESSONS):
            decision = (await router.tasks.SubmitTask(message.submit(topic))).decision
            said = Feedback(author="bench", match=Feedback.MATCH_BAD, better_project=f"projects/p{topic}")
            if decision.project == said.better_project:
                said = Feedback(author="bench", match=Feedback.MATCH_GOOD)
            request = SubmitFeedbackRequest(decision=decision.name, feedback=said)
            while not await _told(feedback, request):  # noqa: ASYNC110 - nothing tells when
                await asyncio.sleep(0.002)
        driving.check_batch(await router.tasks.SubmitTasks(message.batch(message.PROJECTS)))  # each text once


async def _told(feedback: FeedbackServiceAsyncStub, request: SubmitFeedbackRequest) -> bool:
    """Give feedback; False: memory has not heard of the decision yet."""
    try:
        await feedback.SubmitFeedback(request)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
        return False
    return True
