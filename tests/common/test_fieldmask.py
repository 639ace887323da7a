"""Update masks: what is named is changed, nothing else is, and mistakes are told apart by name."""

from datetime import timedelta

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from hopper.registry.v1.project_pb2 import Capacity, Executor, Project
from hopper_common.errors import InvalidArgument
from hopper_common.fieldmask import changes, masked_paths, merge
from hopper_common.timestamps import to_proto

MUTABLE = ("display_name", "tags", "labels", "capacity", "sla", "executor")


def stored() -> Project:
    return Project(
        name="projects/site",
        display_name="Site",
        description="kept",
        tags=["web"],
        labels={"team": "a"},
        capacity=Capacity(max_running=3, max_open=30),
        sla=to_proto(timedelta(hours=1)),
    )


def merged(source: Project, *paths: str) -> Project:
    target = stored()
    merge(FieldMask(paths=paths), source, target, mutable=MUTABLE)
    return target


def test_only_the_named_fields_change() -> None:
    target = merged(Project(display_name="New", tags=["x"], description="ignored"), "display_name")
    expected = stored()
    expected.display_name = "New"
    assert target == expected


def test_a_named_field_that_is_unset_is_cleared() -> None:
    target = merged(Project(), "display_name", "tags", "labels", "sla")
    assert (target.display_name, list(target.tags), dict(target.labels)) == ("", [], {})
    assert not target.HasField("sla")


def test_lists_and_maps_are_replaced_not_added_to() -> None:
    target = merged(Project(tags=["x", "y"], labels={"floor": "2"}), "tags", "labels")
    assert (list(target.tags), dict(target.labels)) == (["x", "y"], {"floor": "2"})


def test_a_nested_field_changes_alone() -> None:
    target = merged(Project(capacity=Capacity(max_running=9)), "capacity.max_running")
    assert target.capacity == Capacity(max_running=9, max_open=30)


def test_a_message_that_is_set_but_empty_replaces_what_was_there() -> None:
    target = merged(Project(capacity=Capacity()), "capacity")
    assert target.HasField("capacity")
    assert target.capacity == Capacity()


def test_a_nested_field_of_what_nobody_has_makes_nothing() -> None:
    assert not merged(Project(), "executor.type").HasField("executor")


def test_an_empty_mask_means_what_is_set_and_may_be_changed() -> None:
    source = Project(name="projects/other", display_name="New", description="ignored")
    assert masked_paths(FieldMask(), source, mutable=MUTABLE) == ["display_name"]


def test_a_star_means_everything_that_may_be_changed() -> None:
    target = merged(Project(display_name="New"), "*")
    assert target == Project(name="projects/site", display_name="New", description="kept")


def test_every_bad_path_is_named_and_nothing_is_changed() -> None:
    target = stored()
    mask = FieldMask(paths=["display_name", "colour", "capacity.depth", "tags.first", "name", "labels.team"])
    with pytest.raises(InvalidArgument) as caught:
        merge(mask, Project(display_name="New"), target, mutable=MUTABLE)
    assert target == stored()
    assert {violation.field for violation in caught.value.violations} == {"update_mask"}
    assert [violation.description for violation in caught.value.violations] == [
        "'colour' is no field of Project",
        "'capacity.depth' is no field of Project",
        "'tags.first' is no field of Project",
        "'name' may not be changed",
        "'labels.team' is no field of Project",
    ]


def test_below_a_mutable_field_everything_is_mutable_but_not_above_it() -> None:
    source = Project(executor=Executor(type=Executor.TYPE_AGENT))
    paths = masked_paths(FieldMask(paths=["executor.type"]), source, mutable=["executor"])
    assert paths == ["executor.type"]
    with pytest.raises(InvalidArgument, match="'executor' may not be changed"):
        masked_paths(FieldMask(paths=["executor"]), source, mutable=["executor.type"])


def test_changes_are_values_by_path_with_none_for_unset() -> None:
    source = Project(display_name="New", capacity=Capacity(max_running=9))
    mask = FieldMask(paths=["display_name", "sla", "capacity.max_running", "display_name"])
    found = changes(mask, source, mutable=MUTABLE)
    assert found == {"display_name": "New", "sla": None, "capacity.max_running": 9}
    assert not source.HasField("sla")  # looking has not made it
