"""The generic validator: what each kind of field refuses, and how violations are named."""

import math
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import NULL_VALUE, Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from hopper.common.v1.options_pb2 import Format
from hopper.router.v1.task_pb2 import Clocks, Task, TaskSpec
from hopper.router.v1.task_service_pb2 import SubmitTaskRequest, UpdateTaskRequest
from hopper_common.errors import FieldViolation, InvalidArgument, UnknownField
from hopper_common.rpc.limits import (
    LATEST_SECONDS,
    LONGEST_SECONDS,
    MOST_VIOLATIONS,
    check_limits,
    compile_limits,
)
from tests.common.rpc_toy import pb


def violations(message: Any) -> list[FieldViolation]:
    with pytest.raises(InvalidArgument) as caught:
        check_limits(message)
    assert caught.value.reason == "INVALID_REQUEST"
    return list(caught.value.violations)


def paths(message: Any) -> list[str]:
    return [violation.field for violation in violations(message)]


def request(**fields: Any) -> Any:
    return pb.Request(name="a", **fields)


def nested(depth: int) -> Struct:
    struct = Struct()
    at = struct
    for _ in range(depth):
        at = at.fields["a"].struct_value
    at.fields["end"].bool_value = True
    return struct


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tags": ["type:Bug", "größe", "a" * 10]},
        {"labels": {"a": "", "b": "12345678"}},
        {"colour": 1, "colours": [0, 1]},
        {"note": "é" * 128, "blob": b"\0" * 256},
        {"notes": ["", "x"]},
        {"priority": 0},
        {"priority": 100},
        {"ratio": 1.0, "any_number": -1e300},
        {"time": Timestamp(seconds=LATEST_SECONDS, nanos=999_999_999)},
        {"lease": Duration(seconds=60), "plain_duration": Duration()},
        {"offset": Duration(seconds=-59, nanos=-999_999_999)},
        {"project": "projects/web"},
        {"project": ""},
        {"maybe": ""},
        {"item": pb.Item(title="x", child=pb.Item(title="y"))},
        {"item": pb.Item(title="x", part=pb.Part(inner=pb.Inner(), words=["w"]))},
        {
            "facts": Struct(
                fields={"deep": Value(struct_value=nested(14)), "none": Value(null_value=NULL_VALUE)}
            )
        },
        {"any": AnyMessage(type_url="type.googleapis.com/toy.v1.Item", value=b"x" * 256)},
    ],
)
def test_what_keeps_to_its_limits_passes(fields: dict[str, Any]) -> None:
    check_limits(request(**fields))


@pytest.mark.parametrize(
    ("fields", "path", "says"),
    [
        ({"tags": ["a", "b", "c", "d"]}, "tags", "at most 3 items, has 4"),
        ({"tags": ["ok", "two words"]}, "tags[1]", "one word"),
        ({"tags": ["ok", ""]}, "tags[1]", "one word"),
        ({"tags": ["a\u202eb"]}, "tags[0]", "printable"),
        ({"tags": ["a" * 11]}, "tags[0]", "at most 10 bytes"),
        ({"tags": ["é" * 6]}, "tags[0]", "at most 10 bytes"),
        ({"labels": {"a": "1", "b": "2", "c": "3"}}, "labels", "at most 2 entries, has 3"),
        ({"labels": {"a": "123456789"}}, 'labels["a"]', "at most 8 bytes"),
        ({"labels": {"123456789": "a"}}, 'labels["123456789"]', "at most 8 bytes"),
        ({"labels": {"a": "\0"}}, 'labels["a"]', "NUL"),
        ({"colour": 99}, "colour", "99, which this server does not know"),
        ({"colours": [0, 1, 7]}, "colours[2]", "7"),
        ({"note": "x" * 257}, "note", "at most 256 bytes"),
        ({"note": "a\0b"}, "note", "NUL"),
        ({"blob": b"x" * 257}, "blob", "at most 256 bytes, has 257"),
        ({"notes": ["x"] * 101}, "notes", "at most 100 items"),
        ({"priority": -1}, "priority", "from 0 to 100"),
        ({"priority": 101}, "priority", "from 0 to 100"),
        ({"ratio": math.nan}, "ratio", "from 0 to 1"),
        ({"any_number": math.nan}, "any_number", "finite"),
        ({"any_number": math.inf}, "any_number", "finite"),
        ({"time": Timestamp(seconds=-1)}, "time", "1970"),
        ({"time": Timestamp(seconds=LATEST_SECONDS + 1)}, "time", "9999"),
        ({"time": Timestamp(nanos=1_000_000_000)}, "time", "1970"),
        ({"time": Timestamp(nanos=-1)}, "time", "1970"),
        ({"lease": Duration()}, "lease", "from 1 to 60 s"),
        ({"lease": Duration(seconds=60, nanos=1)}, "lease", "from 1 to 60 s"),
        ({"plain_duration": Duration(seconds=-1)}, "plain_duration", "from 0"),
        ({"plain_duration": Duration(seconds=LONGEST_SECONDS + 1)}, "plain_duration", "from 0"),
        ({"offset": Duration(seconds=-61)}, "offset", "-60"),
        ({"offset": Duration(seconds=1, nanos=-1)}, "offset", "same sign"),
        ({"offset": Duration(nanos=1_000_000_000)}, "offset", "below one second"),
        ({"mask": {"paths": ["a", "x" * 257]}}, "mask.paths[1]", "at most 256 bytes"),
        ({"mask": {"paths": ["a"] * 101}}, "mask.paths", "at most 100 items"),
        ({"mask": {"paths": [""]}}, "mask.paths[0]", "required"),
        ({"facts": Struct(fields={"a": Value(string_value="x" * 4097)})}, "facts", "at most 4096 bytes"),
        ({"facts": Struct(fields={"a": Value(string_value="\0")})}, 'facts["a"]', "NUL"),
        ({"facts": Struct(fields={"a": Value()})}, 'facts["a"]', "no kind"),
        ({"facts": Struct(fields={"a": Value(number_value=math.inf)})}, 'facts["a"]', "finite"),
        ({"facts": Struct(fields={"\0": Value(bool_value=True)})}, "facts", "NUL"),
        ({"facts": nested(16)}, "facts" + '["a"]' * 16, "deeper than 16"),
        ({"plain_facts": Struct(fields={"a": Value(string_value="x" * 300)})}, "plain_facts", "256 bytes"),
        ({"any": AnyMessage(type_url="t", value=b"x" * 257)}, "any.value", "at most 256 bytes"),
        ({"any": AnyMessage(value=b"x")}, "any.type_url", "required"),
        ({"project": "projects/Web"}, "project", "projects/{project}"),
        ({"item": pb.Item()}, "item.title", "required"),
        ({"item": pb.Item(title="x", child=pb.Item(title="y" * 21))}, "item.child.title", "20 bytes"),
        ({"item": pb.Item(title="x", part=pb.Part(words=["w"]))}, "item.part.inner", "required"),
        ({"item": pb.Item(title="x", part=pb.Part(inner=pb.Inner()))}, "item.part.words", "required"),
        ({"items_by_name": {"k": pb.Item(title="x", colour=5)}}, 'items_by_name["k"].colour', "5"),
    ],
)
def test_each_limit_names_the_field_and_the_remedy(fields: dict[str, Any], path: str, says: str) -> None:
    found = violations(request(**fields))
    assert [violation.field for violation in found] == [path]
    assert says in found[0].description


def test_all_violations_are_reported_at_once() -> None:
    message = pb.Request(
        tags=["two words"],
        items=[pb.Item(title="x"), pb.Item(), pb.Item(title="z", child=pb.Item(title="z", colour=9))],
        priority=200,
    )
    assert paths(message) == ["name", "tags[0]", "items[1].title", "items[2].child.colour", "priority"]


def test_no_more_than_twenty_are_reported() -> None:
    assert len(paths(request(items=[pb.Item()] * 30))) == MOST_VIOLATIONS == 20


def test_a_million_items_are_counted_and_not_walked() -> None:
    assert paths(request(tags=["not a word"] * 1_000_000)) == ["tags"]


def test_values_are_not_quoted() -> None:
    found = violations(request(tags=["my secret"], note="another secret" * 50))
    assert len(found) == 2
    assert "secret" not in str(found)


@pytest.mark.parametrize(
    ("message", "name", "numbers"),
    [
        (pb.NewerRequest(name="a", invented="x", also_invented="y"), "toy.v1.Request", "900, 901"),
        (pb.NewerRequest(name="a", items=[pb.NewerItem(title="t", invented=1)]), "toy.v1.Item", "77"),
        (
            pb.NewerRequest(items=[pb.NewerItem(child=pb.NewerItem(title="t", invented=1))]),
            "toy.v1.Item",
            "77",
        ),
    ],
)
def test_unknown_fields_are_refused_at_any_depth(message: Any, name: str, numbers: str) -> None:
    with pytest.raises(UnknownField) as caught:
        check_limits(pb.Request.FromString(message.SerializeToString()))
    assert caught.value.metadata == {"message": name, "field_numbers": numbers}


def test_unknown_fields_of_well_known_types_are_refused() -> None:
    # Timestamp has fields 1 and 2; this is field 3.
    raw = pb.Request(name="a", time=Timestamp(seconds=1)).SerializeToString() + b"\x6a\x02\x18\x05"
    with pytest.raises(UnknownField) as caught:
        check_limits(pb.Request.FromString(raw))
    assert caught.value.metadata == {"message": "google.protobuf.Timestamp", "field_numbers": "3"}


UUID = "01234567-89ab-cdef-0123-456789abcdef"
ID63 = "a" * 63


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        (
            "id",
            ["a", "0", "a-b.c_d", ID63],
            ["A", "-a", "a-", "a b", "a/b", ID63 + "a", "é", "a\n", ".", "..", "٣"],
        ),
        ("uuid", [UUID, UUID.upper()], [UUID[1:], UUID + "0", UUID.replace("-", ""), "g" + UUID[1:]]),
        ("word", ["type:Bug", "größe", "日本", "a/b", "#1"], ["a b", "a\tb", "a\u00a0b", "a\u200bb", "\x7f"]),
        ("worker_id", ["Ana", "ana@example.org", "a+b", "0"], ["@ana", "a b", "a" * 64, "a/b"]),
        ("project_name", ["projects/a"], ["projects/", "project/a", "projects/a/b", "/projects/a"]),
        (
            "worker_name",
            ["projects/a/workers/Ana@x"],
            ["projects/a/workers/", "projects/a", "workers/a"],
        ),
        ("instance_name", ["instances/root"], ["instances/", "instances/Root", "instances/a/b"]),
        (
            "task_name",
            ["instances/root/tasks/01jx"],
            ["instances/root/tasks/", "tasks/01jx", "instances//tasks/a", "instances/a/tasks/../b"],
        ),
        ("decision_name", ["decisions/01jx"], ["decisions/", "decision/1"]),
        ("delegation_name", ["delegations/01jx"], ["delegations/", "decisions/1"]),
        ("queue_name", ["projects/a", "instances/a"], ["tasks/a", "projects/", "projectsinstances/a"]),
        ("schedule_name", ["schedules/nightly"], ["schedules/", "schedule/a", "schedules/A"]),
        ("principal_name", ["principals/ann"], ["principals/", "principals/Ann", "principals/ann/keys/a"]),
        ("api_key_name", ["principals/ann/keys/1a"], ["principals/ann", "principals/ann/keys/", "keys/1a"]),
        ("peer_name", ["peers/bob"], ["peers/", "peers/b o b", "peer/bob"]),
        ("invitation_name", ["invitations/1a"], ["invitations/", "invitation/1a"]),
        ("pairing_name", ["pairings/1a"], ["pairings/", "pairing/1a"]),
    ],
)
def test_formats(field: str, good: list[str], bad: list[str]) -> None:
    for text in good:
        check_limits(pb.Formats(**{field: text}))
    for text in bad:
        assert paths(pb.Formats(**{field: text})) == [field], text


def test_every_format_has_a_row() -> None:
    covered = {field.name for field in pb.Formats.DESCRIPTOR.fields}
    formats = {name.removeprefix("FORMAT_").lower() for name, _ in Format.items()}
    assert covered == formats - {"unspecified"}


@pytest.mark.parametrize("name", ["FormatOfNumber", "ItemsOfOne", "RequiredBool", "RangeOfText", "Nests"])
def test_a_limit_that_says_nothing_about_its_field_is_refused_at_start(name: str) -> None:
    for _ in range(2):  # also when asked again
        with pytest.raises(ValueError, match=r"^toy\.v1\..* declares .*, which says nothing about its type"):
            compile_limits(pb.DESCRIPTOR.message_types_by_name[name])


def test_an_update_need_not_send_what_it_does_not_change() -> None:
    """Found by a change of a task's priority that was refused for want of its title."""
    check_limits(UpdateTaskRequest(task=Task(name="instances/a/tasks/b", spec=TaskSpec(priority=1))))
    check_limits(UpdateTaskRequest(task=Task(spec=TaskSpec(clocks=Clocks()))))
    assert paths(UpdateTaskRequest()) == ["task"]
    assert paths(UpdateTaskRequest(task=Task(spec=TaskSpec(title="a" * 301)))) == ["task.spec.title"]
    assert paths(SubmitTaskRequest(parent="instances/a", spec=TaskSpec(priority=1))) == ["spec.title"]
