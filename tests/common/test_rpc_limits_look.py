"""The quick look at a request says yes only where the walk with paths finds nothing."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import assume, given
from hypothesis import strategies as st

from hopper.router.v1.task_pb2 import TaskSpec
from hopper.router.v1.task_service_pb2 import SubmitTaskRequest
from hopper_common.errors import InvalidArgument, UnknownField
from hopper_common.rpc import limits
from tests.common.rpc_toy import SERVICE, pb

TOY = SERVICE.methods_by_name["Put"].input_type
TEXTS = st.sampled_from(["", "a", "two words", "a\0b", "é", "é" * 6, "x" * 300, "projects/p", "A"])
WORDS = st.lists(TEXTS, max_size=3)
NUMBERS = st.sampled_from([0, 1, -1, 5, 1000])
ITEMS = st.builds(
    pb.Item,
    title=TEXTS,
    part=st.none() | st.builds(pb.Part, inner=st.none() | st.builds(pb.Inner), words=WORDS),
)
REQUESTS = st.builds(
    pb.Request,
    name=TEXTS,
    note=TEXTS,
    tags=WORDS,
    items=st.lists(ITEMS, max_size=2),
    labels=st.dictionaries(TEXTS, TEXTS, max_size=3),
    items_by_name=st.dictionaries(TEXTS, ITEMS, max_size=2),
    lease=st.none() | st.fixed_dictionaries({"seconds": NUMBERS}),
    time=st.none() | st.fixed_dictionaries({"seconds": NUMBERS}),
    blob=st.sampled_from([b"", b"x", b"x" * 300]),
    colour=st.sampled_from([0, 1, 99]),
)


def walk(message: Any) -> list[Any]:
    found = limits._Found(partial=False)
    limits._message_check(message.DESCRIPTOR)(message, "", found)
    return list(found)


@given(REQUESTS)
def test_yes_is_never_wrong(request: Any) -> None:
    if limits._message_look(TOY)(request):
        assert walk(request) == []


@given(REQUESTS, st.binary(max_size=30))
def test_the_answer_is_that_of_the_walk_alone(request: Any, more: bytes) -> None:
    raw = request.SerializeToString() + more
    try:
        message = pb.Request.FromString(raw)
    except DecodeError:
        assume(False)
    try:
        expected: Any = walk(message)
    except UnknownField as error:
        expected = error.metadata

    try:
        limits.check_limits(message)
        found: Any = []
    except UnknownField as error:
        found = error.metadata
    except InvalidArgument as error:
        found = list(error.violations)

    assert found == expected


@pytest.mark.parametrize("text", ["plain", "naïve “quoted” 日本"])
def test_an_ordinary_request_is_looked_at_once(text: str) -> None:
    spec = TaskSpec(
        title=text,
        description=text * 20,
        tags=["a", "b:c"],
        labels={"k": text},
        priority=7,
        requester="ana",
        payload=b"x",
    )
    request = SubmitTaskRequest(parent="instances/global", spec=spec)

    assert limits._message_look(SubmitTaskRequest.DESCRIPTOR)(request)
