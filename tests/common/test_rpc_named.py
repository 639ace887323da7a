"""What requests name, by the formats that their fields declare."""

from typing import cast

import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from hopper.common.v1.options_pb2 import Format
from hopper.registry.v1 import access_service_pb2 as asvc
from hopper.registry.v1 import project_service_pb2 as psvc
from hopper.router.v1 import task_service_pb2 as tsvc
from hopper.router.v1 import work_service_pb2 as wsvc
from hopper_common.auth.model import Access
from hopper_common.rpc.named import Named, compile_names, named_formats
from tests.common.rpc_toy import pb


def named(request: Message, *, anywhere: bool = False) -> Named:
    return compile_names(cast("Descriptor", request.DESCRIPTOR), Access(anywhere=anywhere))(request)


def test_every_format_of_a_name_is_known() -> None:
    plain = {"FORMAT_UNSPECIFIED", "FORMAT_ID", "FORMAT_UUID", "FORMAT_WORD", "FORMAT_WORKER_ID"}
    assert set(named_formats()) == {number for name, number in Format.items() if name not in plain}


def test_places_are_instances_and_projects_at_any_depth_each_once() -> None:
    request = tsvc.SubmitTasksRequest(parent="instances/a")
    for project in ("projects/x", "projects/y", "projects/x"):
        item = request.items.add()
        item.spec.project = project
        item.spec.dependencies.append("instances/b/tasks/t")
    assert named(request).places == ("instances/a", "projects/x", "instances/b", "projects/y")


def test_names_of_other_things_are_told_and_are_no_places() -> None:
    request = asvc.GetPrincipalRequest(name="principals/ada")
    assert named(request) == Named((), ("principals/ada",), ())


def test_what_names_nothing_may_do_anywhere_where_the_method_says_so() -> None:
    assert named(asvc.WhoAmIRequest()).places == ()
    assert named(asvc.WhoAmIRequest(), anywhere=True).places is None
    assert named(asvc.GetPrincipalRequest(), anywhere=True).places is None
    named_one = named(tsvc.ListTasksRequest(parent="instances/a"), anywhere=True)
    assert named_one.places == ("instances/a",)


def test_workers_must_be_the_callers_own_and_are_of_their_project() -> None:
    claim = wsvc.ClaimTasksRequest(queue="projects/web", worker="ada-1")
    assert named(claim) == Named(("projects/web",), ("projects/web",), ("ada-1",))
    beat = psvc.HeartbeatRequest()
    beat.worker.name = "projects/web/workers/ada-1"
    assert named(beat) == Named(("projects/web",), ("projects/web/workers/ada-1",), ("ada-1",))


def test_what_is_the_callers_own_is_asked_of_no_place() -> None:
    request = wsvc.CompleteTasksRequest()
    request.completions.add().claim.task = "instances/a/tasks/t"
    assert named(request) == Named(None, ("instances/a/tasks/t",), ())
    rotate = asvc.RotateApiKeyRequest(name="principals/ada/keys/k")
    assert named(rotate).places is None


def test_an_update_names_its_resource_and_what_it_changes() -> None:
    request = tsvc.UpdateTaskRequest()
    request.task.name = "instances/a/tasks/t"
    request.task.project = "projects/read-and-sent-back"
    request.task.spec.dependencies.append("instances/b/tasks/t")
    request.update_mask.paths.append("spec.title")
    assert named(request).places == ("instances/a", "instances/b")
    request.update_mask.paths[:] = ["state"]
    assert named(request).places == ("instances/a",)
    for all_of_it in (["*"], []):
        request.update_mask.paths[:] = all_of_it
        assert "projects/read-and-sent-back" in (named(request).places or ())


def test_messages_within_themselves_maps_and_oneofs_are_followed() -> None:
    request = pb.Request(name="a", project="projects/x")
    assert named(request).places == ("projects/x",)
    request = pb.Request(name="a")
    request.items_by_name["k"].child.child.title = "deep"
    assert named(request) == Named((), (), ())


@pytest.mark.parametrize("broken", ["", "instances", "instances/", "tasks"])
def test_a_name_that_is_none_is_covered_by_no_role_but_the_roots(broken: str) -> None:
    # Limits refuse such; if they ever did not, nobody must be let in for it.
    request = tsvc.ReplayTasksRequest(names=[broken])
    assert all(not place.startswith(("instances/a", "projects/a")) for place in named(request).places or ())
