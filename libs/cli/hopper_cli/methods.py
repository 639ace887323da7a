"""The methods of every service, by whichever part of their names people type."""

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from hopper_cli.problems import UsageProblem

_SERVICES: Final = "*/v1/*_service_pb2.py"


@cache
def all_methods() -> tuple[str, ...]:
    """
    Every method that this version knows: `/hopper.router.v1.TaskService/SubmitTask`; and what a process writes into
    its audit log by itself.
    """
    import hopper
    from hopper_common.audit.model import CLOSED, DIVERGED, LOST, OPENED

    found = {
        f"/{service.full_name}/{method.name}"
        for root in hopper.__path__
        for path in Path(root).glob(_SERVICES)
        for service in _services(f"hopper.{path.parts[-3]}.v1.{path.stem}")
        for method in service.methods
    }
    return tuple(sorted({*found, OPENED, CLOSED, LOST, DIVERGED}))


def method_prefix(text: str) -> str:
    """
    How the full names of the methods begin that are meant by `CancelTask`, `TaskService`, `TaskService/CancelTask`, or
    by a beginning with a slash.

    Raises:
        UsageProblem: There is none, or several services have one.
    """
    if text.startswith("/"):
        return text
    services = {path[: path.rindex("/") + 1] for path in all_methods()}
    found = [
        each for each in (*services, *all_methods()) if each.rstrip("/").endswith((f".{text}", f"/{text}"))
    ]
    if len(found) != 1:
        raise UsageProblem(
            f"several services have a method {text}" if found else f"there is no method {text}",
            remedy="write it like CancelTask, TaskService or TaskService/CancelTask",
        )
    return found[0]


def short_method(path: str) -> str:
    """`TaskService/CancelTask` of a full name."""
    return path.rpartition(".")[2]


def _services(module: str) -> list[Any]:
    return list(import_module(module).DESCRIPTOR.services_by_name.values())
