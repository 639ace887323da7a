"""
What the shell offers for the word under the cursor: tasks, projects and instances of the Hopper that answers.

A completion has nowhere to complain to: when no Hopper answers within a moment, there is nothing to offer.
"""

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from hopper_client import Hopper

Offer = tuple[str, str]

_PATIENCE = 2.0
_MOST = 200


def tasks(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """Open tasks: the ends of their ids, and their titles."""

    def ask(hopper: "Hopper") -> Iterable[Offer]:
        from hopper.router.v1.task_service_pb2 import ListTasksRequest
        from hopper_cli.names import short
        from hopper_cli.output import one_line

        full = incomplete.startswith("instances/")
        found = hopper.tasks.ListTasks(ListTasksRequest(page_size=_MOST)).tasks
        return [(task.name if full else short(task.name), one_line(task.spec.title)) for task in found]

    return offers(ctx, ask)


def parked(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """Tasks that failed or were rejected: the ends of their ids, and why."""

    def ask(hopper: "Hopper") -> Iterable[Offer]:
        from hopper.router.v1.task_pb2 import Task
        from hopper.router.v1.task_service_pb2 import ListTasksRequest
        from hopper_cli.names import short
        from hopper_cli.output import one_line

        full = incomplete.startswith("instances/")
        request = ListTasksRequest(states=[Task.STATE_FAILED, Task.STATE_REJECTED], page_size=_MOST)
        return [
            (task.name if full else short(task.name), one_line(f"{task.failure.reason} {task.spec.title}"))
            for task in hopper.tasks.ListTasks(request).tasks
        ]

    return offers(ctx, ask)


def schedules(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """Schedules: ids, and what they ask for."""

    def ask(hopper: "Hopper") -> Iterable[Offer]:
        from hopper.router.v1.schedule_service_pb2 import ListSchedulesRequest
        from hopper_cli.names import bare
        from hopper_cli.output import one_line

        full = incomplete.startswith("schedules/")
        found = hopper.schedules.ListSchedules(ListSchedulesRequest(page_size=_MOST)).schedules
        return [(each.name if full else bare(each.name), one_line(each.spec.title)) for each in found]

    return offers(ctx, ask)


def audited(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """Who is in the newest records of the audit log."""

    def ask(hopper: "Hopper") -> Iterable[Offer]:
        from hopper.common.v1.audit_service_pb2 import ListAuditRecordsRequest

        records = hopper.audit.ListAuditRecords(ListAuditRecordsRequest(page_size=_MOST)).records
        return [
            (who.removeprefix("principals/"), "") for who in dict.fromkeys(each.principal for each in records)
        ]

    return offers(ctx, ask)


def methods(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """Methods and services, without their packages."""
    from hopper_cli.methods import all_methods, short_method

    shown = [short_method(path) for path in all_methods()]
    return [(each, "") for each in dict.fromkeys([*(each.partition("/")[0] for each in shown), *shown])]


def projects(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """Projects: ids, and what people call them."""

    def ask(hopper: "Hopper") -> Iterable[Offer]:
        return _projects(hopper, full=incomplete.startswith("projects/"))

    return offers(ctx, ask)


def instances(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """Instances: ids, and what people call them."""

    def ask(hopper: "Hopper") -> Iterable[Offer]:
        return _instances(hopper, full=incomplete.startswith("instances/"))

    return offers(ctx, ask)


def peers(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """Peers: names, and how far they are trusted."""

    def ask(hopper: "Hopper") -> Iterable[Offer]:
        from hopper.common.v1.options_pb2 import TrustLevel
        from hopper.federation.v1.peer_admin_service_pb2 import ListPeersRequest
        from hopper_cli.names import bare
        from hopper_cli.render import word

        full = incomplete.startswith("peers/")
        found = hopper.peers.ListPeers(ListPeersRequest(page_size=_MOST, include_blocked=True)).peers
        return [
            (each.name if full else bare(each.name), word(TrustLevel, each.level, "TRUST_LEVEL_"))
            for each in found
        ]

    return offers(ctx, ask)


def hand_overs(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """Hand-overs to and from peers: the ends of their ids, and what they are of."""
    return _hand_overs(ctx, waiting=False)


def waiting_hand_overs(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """The same, only those that a person has to decide about."""
    return _hand_overs(ctx, waiting=True)


def _hand_overs(ctx: typer.Context, *, waiting: bool) -> list[Offer]:
    def ask(hopper: "Hopper") -> Iterable[Offer]:
        from hopper.federation.v1.delegation_service_pb2 import ListRemoteDelegationsRequest
        from hopper_cli.names import short
        from hopper_cli.output import one_line

        request = ListRemoteDelegationsRequest(waiting=waiting, page_size=_MOST)
        found = hopper.remote_delegations.ListRemoteDelegations(request).delegations
        return [(short(each.id), one_line(each.title)) for each in found]

    return offers(ctx, ask)


def hand_over_states(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """States of hand-overs."""
    from hopper_cli.hand_over_text import states

    return [(state, "") for state in states()]


def trust_levels(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """How far a peer may be trusted."""
    return [
        ("known", "what it offers waits for a person"),
        ("trusted", "by its policy"),
        ("verified", "by its policy, sensitive labels too"),
    ]


def pairings(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """Pairings by digits: the ends of their ids, and where the other is."""

    def ask(hopper: "Hopper") -> Iterable[Offer]:
        from hopper.federation.v1.peer_admin_service_pb2 import ListPairingsRequest
        from hopper_cli.names import short
        from hopper_cli.output import one_line

        found = hopper.peers.ListPairings(ListPairingsRequest()).pairings
        return [(short(each.name), one_line(f"{each.claimed_name} {each.address}")) for each in found]

    return offers(ctx, ask)


def invitations(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """Invitations: the ends of their ids, and whom they are for."""

    def ask(hopper: "Hopper") -> Iterable[Offer]:
        from hopper.federation.v1.peer_admin_service_pb2 import ListInvitationsRequest
        from hopper_cli.names import bare, short

        found = hopper.peers.ListInvitations(ListInvitationsRequest()).invitations
        return [(short(each.name), bare(each.peer)) for each in found]

    return offers(ctx, ask)


def queues(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """Whatever has a queue: projects and instances, by full name."""

    def ask(hopper: "Hopper") -> Iterable[Offer]:
        return [*_projects(hopper, full=True), *_instances(hopper, full=True)]

    return offers(ctx, ask)


def _projects(hopper: "Hopper", *, full: bool) -> list[Offer]:
    from hopper.registry.v1.project_service_pb2 import ListProjectsRequest
    from hopper_cli.names import bare
    from hopper_cli.output import one_line

    found = hopper.projects.ListProjects(ListProjectsRequest(page_size=_MOST)).projects
    return [(each.name if full else bare(each.name), one_line(each.display_name)) for each in found]


def _instances(hopper: "Hopper", *, full: bool) -> list[Offer]:
    from hopper.registry.v1.instance_service_pb2 import ListInstancesRequest
    from hopper_cli.names import bare
    from hopper_cli.output import one_line

    found = hopper.instances.ListInstances(ListInstancesRequest(page_size=_MOST)).instances
    return [(each.name if full else bare(each.name), one_line(each.display_name)) for each in found]


def offers(ctx: typer.Context, ask: Callable[["Hopper"], Iterable[Offer]]) -> list[Offer]:
    """What a Hopper answers within a moment; nothing, if none does."""
    from hopper_client import Hopper
    from hopper_common.errors import HopperError
    from hopper_common.startup import StartupError

    address = ctx.params.get("_address") or ctx.find_root().params.get("address")
    key_file = ctx.params.get("_key_file") or ctx.find_root().params.get("key_file")
    try:
        with Hopper(
            address or os.environ.get("HOPPER_ADDRESS") or None, timeout=_PATIENCE, key_file=key_file
        ) as hopper:
            return list(ask(hopper))
    except (HopperError, StartupError):  # the prompt is no place for errors
        return []
