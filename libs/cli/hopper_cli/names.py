"""Names as people type them, and names as they are: pure text, nothing is looked up here."""

from collections.abc import Iterable
from typing import Final

from hopper_cli.problems import UsageProblem

SHOWN: Final = 6
"""Characters of a task's id that are shown: enough to tell a million tasks apart, and to type."""


def short(name: str) -> str:
    """The end of a task's id, as it is shown and typed."""
    return name.rpartition("/")[2][-SHOWN:]


def bare(name: str) -> str:
    """The last segment: `mesos` of `projects/mesos`."""
    return name.rpartition("/")[2]


def project_name(text: str) -> str:
    """`projects/mesos` of `mesos`; a full name stays."""
    return _full(text, "projects")


def instance_name(text: str) -> str:
    """`instances/global` of `global`; a full name stays."""
    return _full(text, "instances")


def schedule_name(text: str) -> str:
    """`schedules/nightly` of `nightly`; a full name stays."""
    return _full(text, "schedules")


def peer_name(text: str) -> str:
    """`peers/bob` of `bob`; a full name stays."""
    return _full(text, "peers")


def only_suffix(text: str, collection: str, names: Iterable[str]) -> str:
    """
    The one name that is meant by the end of its id, as it is shown; a full name stays.

    Raises:
        UsageProblem: None of them ends so, or several do.
    """
    text = text.strip().lower()
    if text.startswith(f"{collection}/"):
        return text
    return only_end(text, names, collection, f"hopper peer {collection}")


def only_end(text: str, names: Iterable[str], collection: str, listed_by: str) -> str:
    """
    The one of some names that ends so.

    Args:
        listed_by: The command that shows which there are.

    Raises:
        UsageProblem: None of them ends so, or several do.
    """
    text = text.strip().lower()
    found = [name for name in names if text and name.endswith(text)]
    if len(found) != 1:
        several = ", ".join(short(name) for name in found)
        wrong = (
            f"{text} is the end of several: {several}"
            if found
            else f"none of the {collection} ends in {text!r}"
        )
        raise UsageProblem(wrong, remedy=f"`{listed_by}` shows which there are")
    return found[0]


def principal_name(text: str) -> str:
    """`principals/ann` of `ann`; `owner`, `stranger`, `process` and SPIFFE ids stay."""
    if text in ("owner", "stranger", "process") or text.startswith("spiffe://"):
        return text
    return _full(text, "principals")


def _full(text: str, collection: str) -> str:
    text = text.strip()
    if not text:
        raise UsageProblem(f"an empty name is not one of {collection}")
    if text.startswith(f"{collection}/") or "/" not in text:
        return f"{collection}/{text.removeprefix(f'{collection}/')}"
    raise UsageProblem(f"{text!r} is not one of {collection}", remedy=f"write its id, or {collection}/ID")


def queue_names(text: str) -> tuple[str, ...]:
    """
    The queues that may be meant, in the order in which to try them.

    A bare id is a project's, else an instance's; `projects/p` and `instances/i` are what they say.
    """
    text = text.strip()
    if text.startswith(("projects/", "instances/")):
        return (text,)
    return (project_name(text), instance_name(text))


def instance_of(task: str) -> str:
    """The instance a task lives in: `instances/global` of `instances/global/tasks/01k...`."""
    return task.partition("/tasks/")[0]


def path_of(chain: list[str]) -> str:
    """A chain of instances: `global → team → run-3`."""
    return " → ".join(bare(name) for name in chain)
