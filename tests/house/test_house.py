"""The house keeps its own rules: what may stand where, and what is promised about every method and error."""

import re
import subprocess
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from google.protobuf.descriptor_pool import Default

import hopper_common.rpc.errors as rpc_errors
from hopper.common.v1 import error_reason_pb2
from hopper_common.errors import HopperError
from hopper_common.rpc.access import require_declared

ROOT = Path(__file__).parents[2]
TOP = {"protos", "services", "libs", "tests", "deploy", "Makefile", "pyproject.toml", "buf.yaml", "README.md"}
ALSO = {"LICENSE", "CHANGELOG.md"}
EXTRAS = {
    "postgres",
    "metrics",
    "redis",
    "opensearch",
    "learned",
    "llm",
    "mcp",
    "a2a",
    "otel",
    "celery",
    "discovery",
    "dev",
}
SERVICES = ("registry", "router", "memory", "federation")


def committed() -> list[str]:
    """Every file that git keeps."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.splitlines()


def test_the_top_level_holds_nothing_else() -> None:
    top = {path.split("/")[0] for path in committed()}
    assert {name for name in top if not name.startswith(".")} <= TOP | ALSO


def test_every_extra_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == "hopper-mesh"
    assert set(project["optional-dependencies"]) == EXTRAS


def test_every_pin_is_exact_and_names_no_address() -> None:
    lines = (ROOT / "deploy/constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins
    assert [
        line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+( ; .*)?", line)
    ] == []


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_is_found_by_name_and_has_its_page(service: str) -> None:
    assert service in {point.name for point in entry_points(group="hopper.services")}
    assert (ROOT / "services" / service / "README.md").stat().st_size > 1000


@pytest.mark.parametrize(
    "target", ["help", "setup", "demo", "test", "bench", "verify", "fix", "proto", "proto-check"]
)
def test_make_has_the_target(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_readme_gives_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "make demo" in readme
    assert "make test" in readme


def test_every_method_of_the_contract_declares_who_may_call_it() -> None:
    from hopper.memory.v1 import (
        episodic_service_pb2,
        feedback_service_pb2,
        learning_service_pb2,
        working_service_pb2,
    )
    from hopper.registry.v1 import instance_service_pb2, project_service_pb2
    from hopper.router.v1 import (
        delegation_service_pb2,
        routing_service_pb2,
        schedule_service_pb2,
        task_service_pb2,
        work_service_pb2,
    )
    from hopper.sage.v1 import sage_service_pb2

    modules = (
        *(episodic_service_pb2, feedback_service_pb2, working_service_pb2, instance_service_pb2),
        *(
            project_service_pb2,
            delegation_service_pb2,
            routing_service_pb2,
            schedule_service_pb2,
            task_service_pb2,
            work_service_pb2,
        ),
        learning_service_pb2,
        sage_service_pb2,
    )
    services = [service for module in modules for service in module.DESCRIPTOR.services_by_name.values()]
    assert len(services) == 12
    require_declared(services)
    assert all(Default().FindServiceByName(service.full_name) is service for service in services)


def test_no_process_of_a_hopper_hosts_the_sage() -> None:
    sources = [
        ROOT / path
        for path in committed()
        if path.startswith(("services/", "libs/cli/")) and path.endswith(".py")
    ]
    assert sources
    assert [path for path in sources if "add_SageServiceServicer_to_server" in path.read_text()] == []
    assert "sage" not in {point.name for point in entry_points(group="hopper.services")}


def _subclasses(kind: type[HopperError]) -> set[type[HopperError]]:
    below = set(kind.__subclasses__())
    return below.union(*(_subclasses(child) for child in below)) if below else below


def test_every_error_of_every_service_is_in_the_catalogue() -> None:
    import hopper_federation.errors
    import hopper_memory.errors
    import hopper_registry.errors
    import hopper_router.errors
    import hopper_router.sage.errors
    import hopper_sage.errors

    assert hopper_federation.errors
    assert hopper_memory.errors
    assert hopper_registry.errors
    assert hopper_router.errors
    assert hopper_router.sage.errors
    assert hopper_sage.errors
    known = {name.removeprefix("ERROR_REASON_") for name in error_reason_pb2.ErrorReason.keys()}  # noqa: SIM118 - not a dict
    ours = {kind for kind in _subclasses(HopperError) if kind.__module__.startswith("hopper_")}
    reasons = {kind.reason for kind in ours if hasattr(kind, "reason")}
    assert reasons <= known
    assert rpc_errors.code_of_kind(hopper_router.errors.TaskClaimed).name == "ABORTED"
