"""The checks of `hopper doctor` that look at what does not go on by itself: peers, hand-overs, tasks."""

from hopper_cli.checks import Check, ok, warn
from hopper_cli.cli import Cli
from hopper_client import MethodNotOffered

_MOST: int = 1_000
_MOST_NAMED: int = 5


def peers(cli: Cli) -> Check:
    """Whether the peers that work may go to, or come from, are reached, and nothing is amiss."""
    from hopper.common.v1.options_pb2 import TRUST_LEVEL_BLOCKED
    from hopper_cli.commands.peer_trust import all_peers
    from hopper_cli.names import bare
    from hopper_cli.peer_text import trouble

    try:
        found = [each for each in all_peers(cli) if each.peer.level != TRUST_LEVEL_BLOCKED]
    except MethodNotOffered:
        return ok("peers", "this Hopper knows no others")
    troubled = [(bare(each.peer.name), trouble(each)) for each in found]
    troubled = [(name, what) for name, what in troubled if what]
    if not troubled:
        return ok("peers", str(len(found)))
    said = ", ".join(f"{name} ({what})" for name, what in troubled[:_MOST_NAMED])
    return warn("peers", said, f"`hopper doctor {troubled[0][0]}` looks for what is wrong")


def hand_overs(cli: Cli) -> Check:
    """Whether anything that crossed waits for a person."""
    from hopper.federation.v1.delegation_service_pb2 import ListRemoteDelegationsRequest

    request = ListRemoteDelegationsRequest(waiting=True, page_size=_MOST)
    try:
        found = cli.hopper.remote_delegations.ListRemoteDelegations(request)
    except MethodNotOffered:
        return ok("hand-overs", "nothing crosses")
    count = f"{len(found.delegations)}{' or more' if found.next_page_token else ''}"
    if not found.delegations:
        return ok("hand-overs", "none waits for you")
    verb = "waits" if count == "1" else "wait"
    return warn("hand-overs", f"{count} {verb} for you", "`hopper delegation list --waiting`")


def tasks(cli: Cli) -> Check:
    """Whether there are tasks that nobody can take."""
    from hopper.router.v1.task_pb2 import Task, Wait
    from hopper.router.v1.task_service_pb2 import ListTasksRequest
    from hopper_cli.names import short

    request = ListTasksRequest(states=[Task.STATE_SUBMITTED], page_size=_MOST)
    listed = cli.hopper.tasks.ListTasks(request).tasks
    stuck = [each for each in listed if each.wait.reason == Wait.REASON_NO_ELIGIBLE_EXECUTOR]
    if not stuck:
        return ok("tasks", "there is none that nobody can take")
    names = ", ".join(short(each.name) for each in stuck[:_MOST_NAMED])
    return warn("tasks", f"nobody can take {len(stuck)}: {names}", f"`hopper why {short(stuck[0].name)}`")
