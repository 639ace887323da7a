"""
The commands, a module for each subject. Each imports what it needs inside its functions: `hopper --help`
should not wait for grpc.
"""

import typer


def register_all(app: typer.Typer) -> None:
    """Add every command to *app*, in the order of `--help`."""
    from hopper_cli.commands import (
        archive,
        artifact,
        audit,
        auth,
        completion,
        delegations,
        demo,
        doctor,
        editing,
        feedback,
        hand_overs,
        identity,
        instances,
        parked,
        peer,
        policy,
        projects,
        rules,
        sage,
        schedules,
        stats,
        tasks,
        up,
        watch,
        why,
        work,
        working,
    )

    for module in (
        up,
        tasks,
        editing,
        schedules,
        parked,
        why,
        watch,
        working,
        work,
        artifact,
        feedback,
        delegations,
        hand_overs,
        projects,
        instances,
        rules,
        policy,
        sage,
        stats,
        archive,
        auth,
        audit,
        identity,
        peer,
        doctor,
        demo,
        completion,
    ):
        module.register(app)
