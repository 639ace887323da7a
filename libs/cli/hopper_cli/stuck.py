"""What a person can do about a task that nobody takes: by what ruled each project out."""

from collections.abc import Callable, Iterator
from typing import Final

from hopper.registry.v1.project_pb2 import Executor, Project
from hopper.router.v1.decision_pb2 import Decision, Exclusion
from hopper_cli.names import bare, short

MOST_PROJECTS: Final = 5
"""Of each filter: whom advice is given about."""

ProjectOf = Callable[[str], Project | None]
"""A project by its full name; None: it is gone."""


def what_to_do(decision: Decision, task: str, project_of: ProjectOf) -> list[str]:
    """
    What could make somebody take a task, each once.

    Args:
        task: Its full name.
    """
    said = [line for each in decision.exclusions for line in _about(each, short(task), project_of)]
    return list(dict.fromkeys(said))


def _about(exclusion: Exclusion, task: str, project_of: ProjectOf) -> Iterator[str]:
    for name in exclusion.projects[:MOST_PROJECTS]:
        project = project_of(name)
        if project is None:
            continue
        peer = _peer(project)
        advise = (_OF_PEERS if peer else _OF_PROJECTS).get(exclusion.filter)
        if advise is not None:
            yield advise(peer or bare(name), bare(name), task)


def _peer(project: Project) -> str:
    """What the peer is called that a project stands for; empty: it stands for none."""
    return project.display_name if project.executor.type == Executor.TYPE_PEER else ""


_Advice = Callable[[str, str, str], str]
"""Of what a project or peer is called, the project's id and the task's short id."""

_OF_PEERS: Final[dict[str, _Advice]] = {
    "no-live-worker": lambda peer, _, task: (
        f"{peer} was not heard lately: `hopper doctor {peer}` looks for what is in the way; "
        "once it is heard, this is decided anew"
    ),
    "border": lambda peer, _, task: (
        f"the policy lets it not go to {peer}: `hopper policy explain {peer} {task}` shows which rule, "
        f"`hopper peer trust {peer} --policy FILE` changes it"
    ),
    "rejected-before": lambda peer, project, task: (
        f"it came back from {peer}: `hopper delegations {task}` says why, "
        f"`hopper delegate {task} --to {project}` sends it there again"
    ),
    "capability": lambda peer, _, task: (
        f"{peer} does not say that it can do this: its owner gives a project there the capability, "
        f"and a rule for this Hopper that covers it"
    ),
    "capacity": lambda peer, _, task: f"{peer} has as much as it takes: this waits until it has room",
}
_OF_PROJECTS: Final[dict[str, _Advice]] = {
    "no-live-worker": lambda _, project, task: (
        f"`hopper work --queue {project} --exec COMMAND` starts a worker"
    ),
    "project-paused": lambda _, project, task: f"`hopper project resume {project}` lets it take tasks again",
    "instance-not-running": lambda _, project, task: (
        f"`hopper instance start` starts what stands for {project}"
    ),
    "rejected-before": lambda _, project, task: (
        f"it came back from {project}: `hopper delegations {task}` says why"
    ),
    "capacity": lambda _, project, task: f"{project} has as much as it takes: this waits until it has room",
}
