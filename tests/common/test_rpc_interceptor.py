"""What surrounds a call, seen from the other end of a real channel."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import grpc.aio
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from hopper_common.errors import Internal, InvalidArgument, LostRace, MalformedRequest, UnknownField
from hopper_common.rpc.interceptor import Method
from hopper_common.rpc.server import build_server
from tests.common.rpc_toy import SERVICE, Refusal, Toy, Unary, echo, pb, pb_grpc, registered, toy

SECRET = "the customer's password is swordfish"


class Claimed(LostRace):
    """Another worker has the task."""

    reason = "TASK_CLAIMED"


def raising(error: BaseException) -> Unary:
    async def answer(request: Any, context: Any) -> Any:
        raise error

    return answer


async def requests(*names: str) -> AsyncIterator[Any]:
    for name in names:
        yield pb.Request(name=name)


def deep(levels: int) -> bytes:
    """A request with an item that many levels deep."""
    raw = b"\x0a\x01t"
    for _ in range(levels):
        raw = b"\x0a\x01t\x12" + _varint(len(raw)) + raw
    return b"\x0a\x01a\x1a" + _varint(len(raw)) + raw


def _varint(number: int) -> bytes:
    low, high = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _varint(high) if high else bytes([low])


PUT = Method.of(SERVICE.methods_by_name["Put"])
GOOD = pb.Request(
    name="a",
    tags=["x"],
    items=[pb.Item(title="t", part=pb.Part(inner=pb.Inner(), words=["w"]))],
    labels={"k": "v"},
    items_by_name={"k": pb.Item(title="t")},
    time={"seconds": 1},
    lease={"seconds": 1},
    mask={"paths": ["p"]},
    facts={"a": 1, "b": ["c", None, {"d": True}]},
    any={"type_url": "t"},
    ratio=0.5,
).SerializeToString()


def _damaged(position: int, value: int) -> bytes:
    raw = bytearray(GOOD)
    raw[position % len(raw)] = value
    return bytes(raw)


# Requests that are refused before a handler sees them.


@pytest.fixture
async def stub() -> AsyncIterator[Any]:
    async def unreachable(request: Any, context: Any) -> Any:
        raise AssertionError("the handler was called")

    async with toy(unreachable) as stub:
        yield stub


async def test_violations_arrive_as_a_bad_request(stub: Any) -> None:
    request = pb.Request(tags=["two words"], items=[pb.Item(title="x"), pb.Item()], colour=99)
    refusal = await Refusal.of(stub.Put(request))
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
    assert refusal.paths == ["name", "tags[0]", "items[1].title", "colour"]
    assert "items[1].title: is required" in refusal.text


async def test_a_million_tags_are_one_violation(stub: Any) -> None:
    refusal = await Refusal.of(stub.Upload(pb.Request(name="a", tags=["t"] * 1_000_000)))
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
    assert refusal.paths == ["tags"]


async def test_a_field_of_a_newer_client_is_named(stub: Any) -> None:
    newer = pb.NewerRequest(name="a", items=[pb.NewerItem(title="t", child=pb.NewerItem(invented=1))])
    refusal = await Refusal.of(stub.raw("Put", newer.SerializeToString()))
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "UNKNOWN_FIELD")
    assert refusal.metadata == {"message": "toy.v1.Item", "field_numbers": "77"}


@pytest.mark.parametrize(
    "raw",
    [
        b"\x0a\x02\xff\xfe",  # a name that is not UTF-8
        b"\x0a\x7fabc",  # a name cut short
        b"\xff\xff\xff\xff",
        b"\x1a\x04\x0a\x02\xff\xfe",  # not UTF-8 in items[0].title
        deep(10_000),
    ],
)
async def test_broken_bytes_are_a_typed_error(stub: Any, raw: bytes) -> None:
    refusal = await Refusal.of(stub.raw("Put", raw))
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "MALFORMED_REQUEST")
    assert refusal.metadata == {"method": "/toy.v1.ToyService/Put"}


async def test_what_protobuf_can_nest_is_checked_to_the_bottom() -> None:
    async with toy() as stub:
        assert await stub.raw("Put", deep(90)) == pb.Response(text="a").SerializeToString()


@given(raw=st.binary(max_size=200) | st.builds(_damaged, st.integers(0, 200), st.integers(0, 255)))
def test_any_bytes_are_a_request_or_a_typed_error(raw: bytes) -> None:
    with contextlib.suppress(MalformedRequest, UnknownField, InvalidArgument):
        assert isinstance(PUT.parse(raw), pb.Request)


async def test_a_large_body_is_a_typed_error_too(stub: Any) -> None:
    request = pb.Request(name="a", big=b"x" * 5_000_000)
    refusal = await Refusal.of(stub.Put(request))
    assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "REQUEST_TOO_LARGE")
    assert refusal.metadata == {"bytes": str(request.ByteSize()), "max_bytes": "262144"}


async def test_a_method_may_allow_more() -> None:
    async with toy() as stub:
        response = await stub.Upload(pb.Request(name="a", big=b"x" * 5_000_000))
    assert response.text == "a"


async def test_grpcs_own_limit_still_comes_back_as_ours(stub: Any) -> None:
    refusal = await Refusal.of(stub.raw("Put", b"x" * (17 * 1024 * 1024)))
    assert refusal.reason == "REQUEST_TOO_LARGE"


async def test_a_method_that_nobody_has_written_is_not_offered(stub: Any) -> None:
    for refusal in (
        await Refusal.of(stub.Unwritten(pb.Request(name="a"))),
        await Refusal.of(stub.raw("Invented", b"")),
    ):
        assert (refusal.code, refusal.reason) == ("UNIMPLEMENTED", "METHOD_NOT_OFFERED")
        assert refusal.metadata["method"].startswith("/toy.v1.ToyService/")


# All four shapes.


async def test_the_four_shapes_answer() -> None:
    async with toy() as stub:
        assert (await stub.Put(pb.Request(name="a"))).text == "a"
        assert [response.text async for response in stub.Watch(pb.Request(name="a"))] == ["first", "a"]
        assert (await stub.Collect(requests("a", "b"))).text == "b"
        assert [response.text async for response in stub.Chat(requests("a", "b"))] == ["a", "b"]


async def drained(call: Any) -> None:
    async for _ in call:
        pass


async def test_the_four_shapes_check_their_requests() -> None:
    async with toy() as stub:
        for refusal in (
            await Refusal.of(stub.Put(pb.Request())),
            await Refusal.of(drained(stub.Watch(pb.Request()))),
            await Refusal.of(stub.Collect(requests("a", ""))),
            await Refusal.of(drained(stub.Chat(requests("a", "")))),
        ):
            assert (refusal.code, refusal.reason, refusal.paths) == (
                "INVALID_ARGUMENT",
                "INVALID_REQUEST",
                ["name"],
            )


async def test_the_four_shapes_answer_domain_errors() -> None:
    claimed = Claimed(task="instances/a/tasks/b", holder="ana")
    claimed.retry_after = timedelta(seconds=3)
    async with toy(raising(claimed)) as stub:
        for refusal in (
            await Refusal.of(stub.Put(pb.Request(name="a"))),
            await Refusal.of(drained(stub.Watch(pb.Request(name="a")))),
            await Refusal.of(stub.Collect(requests("a"))),
            await Refusal.of(drained(stub.Chat(requests("a")))),
        ):
            assert (refusal.code, refusal.reason) == ("ABORTED", "TASK_CLAIMED")
            assert refusal.metadata == {"task": "instances/a/tasks/b", "holder": "ana"}
            assert refusal.text == "another worker has the task"
            assert refusal.error.retry_after == timedelta(seconds=3)


async def test_the_four_shapes_hide_what_nobody_foresaw() -> None:
    async with toy(raising(ValueError(SECRET))) as stub:
        with structlog.testing.capture_logs() as logged:
            refusals = [
                await Refusal.of(stub.Put(pb.Request(name="a"))),
                await Refusal.of(drained(stub.Watch(pb.Request(name="a")))),
                await Refusal.of(stub.Collect(requests("a"))),
                await Refusal.of(drained(stub.Chat(requests("a")))),
            ]
    incidents = [entry["incident"] for entry in logged if entry["log_level"] == "error"]
    assert len(set(incidents)) == 4
    for refusal, incident in zip(refusals, incidents, strict=True):
        assert (refusal.code, refusal.reason) == ("INTERNAL", "INTERNAL")
        assert refusal.metadata == {"incident": incident}
        assert incident in refusal.text
        assert "swordfish" not in refusal.text
        assert "ValueError" not in refusal.text


# Errors.


@pytest.mark.parametrize(
    "error",
    [
        Internal(SECRET),
        ExceptionGroup(SECRET, [Claimed(), ValueError(SECRET)]),
        KeyError(SECRET),
    ],
)
async def test_only_foreseen_errors_show_their_text(error: Exception) -> None:
    async with toy(raising(error)) as stub:
        refusal = await Refusal.of(stub.Put(pb.Request(name="a")))
    assert "swordfish" not in refusal.text
    assert refusal.reason == "INTERNAL"


async def test_a_domain_error_out_of_a_task_group_is_that_error() -> None:
    async def answer(request: Any, context: Any) -> Any:
        async with asyncio.TaskGroup() as group:
            group.create_task(raising(Claimed())(request, context))  # type: ignore[arg-type]

    async with toy(answer) as stub:
        refusal = await Refusal.of(stub.Put(pb.Request(name="a")))
    assert (refusal.code, refusal.reason) == ("ABORTED", "TASK_CLAIMED")


async def test_a_handler_may_abort_by_itself() -> None:
    async def answer(request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.DATA_LOSS, "by myself")

    async with toy(answer) as stub:
        refusal = await Refusal.of(stub.Put(pb.Request(name="a")))
    assert (refusal.code, refusal.text) == ("DATA_LOSS", "by myself")


# Time.


async def forever(request: Any, context: Any) -> Any:
    await asyncio.Event().wait()


async def test_a_unary_call_without_a_deadline_gets_one() -> None:
    async with toy(forever, unary_cap=timedelta(milliseconds=30)) as stub:
        refusal = await Refusal.of(stub.Put(pb.Request(name="a")))
    assert (refusal.code, refusal.reason) == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")
    assert refusal.metadata == {"method": "/toy.v1.ToyService/Put", "seconds": "0.03"}


async def test_the_clients_own_deadline_counts_instead() -> None:
    async def slow(request: Any, context: Any) -> Any:
        assert context.time_remaining() > 60
        await asyncio.sleep(0)  # where a cap of nothing would strike
        return pb.Response(text="late")

    async with toy(slow, unary_cap=timedelta(0)) as stub:
        assert (await stub.Put(pb.Request(name="a"), timeout=100)).text == "late"


async def test_a_timeout_of_the_handlers_own_is_a_defect_not_a_deadline() -> None:
    async with toy(raising(TimeoutError("database"))) as stub:
        refusal = await Refusal.of(stub.Put(pb.Request(name="a")))
    assert refusal.reason == "INTERNAL"


async def test_streams_have_no_cap() -> None:
    seen = asyncio.Event()

    async def answer(request: Any, context: Any) -> Any:
        assert context.time_remaining() is None
        seen.set()
        await asyncio.Event().wait()

    async with toy(answer, unary_cap=timedelta(0)) as stub:
        call = stub.Watch(pb.Request(name="a"))
        assert (await call.read()).text == "first"
        await seen.wait()
        call.cancel()


async def test_a_stream_is_closed_with_its_call() -> None:
    closed = asyncio.Event()

    class Watched(Toy):
        async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                yield pb.Response(text="first")
                await asyncio.Event().wait()
            finally:
                closed.set()

    server = build_server([registered(Watched())])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = pb_grpc.ToyServiceStub(channel).Watch(pb.Request(name="a"))
        await call.read()
        call.cancel()
        await asyncio.wait_for(closed.wait(), 60)
    await server.stop(None)


# The log.


async def test_each_call_is_logged_once_without_what_it_said() -> None:
    async def answer(request: Any, context: Any) -> Any:
        structlog.get_logger().info("inside")
        return await echo(request, context)

    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logged:
        async with toy(answer) as stub:
            await stub.Put(pb.Request(name="a", note=SECRET))
            await Refusal.of(stub.Put(pb.Request(name="B", note=SECRET)))
            await drained(stub.Watch(pb.Request(name="a", note=SECRET)))
    finished = [entry for entry in logged if entry["event"] == "call finished"]
    assert [(entry["method"], entry["code"]) for entry in finished] == [
        ("/toy.v1.ToyService/Put", "OK"),
        ("/toy.v1.ToyService/Put", "INVALID_ARGUMENT"),
        ("/toy.v1.ToyService/Watch", "OK"),
    ]
    assert all(entry["milliseconds"] > 0 and entry["log_level"] == "debug" for entry in finished)
    assert len({entry["call"] for entry in finished}) == 3
    inside = [entry for entry in logged if entry["event"] == "inside"]
    assert inside[0]["call"] == finished[0]["call"]
    assert "swordfish" not in str(logged)


async def test_concurrent_calls_keep_their_own_ids() -> None:
    both = asyncio.Barrier(2)
    ids = []

    async def answer(request: Any, context: Any) -> Any:
        await both.wait()
        ids.append(structlog.contextvars.get_contextvars()["call"])
        return await echo(request, context)

    async with toy(answer) as stub:
        await asyncio.gather(stub.Put(pb.Request(name="a")), stub.Put(pb.Request(name="b")))
    assert len(set(ids)) == 2


async def test_a_burst_of_calls_loses_none() -> None:
    async with toy() as stub:
        answers = await asyncio.gather(*(stub.Put(pb.Request(name=f"n{i}")) for i in range(3000)))
    assert [answer.text for answer in answers] == [f"n{i}" for i in range(3000)]
