"""
`hopper identity` and `hopper ca`: who this Hopper is, a copy of it, and the rotation of its root.

They work on the files, whether a Hopper runs or not: changes are made under the lock that all its processes take, and
those take over within a second what has changed. Only `restore` needs them to be stopped.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from hopper_cli.cli import Cli, command
from hopper_cli.commands.options import SET_UP, YesOption
from hopper_cli.commands.projects import confirm

if TYPE_CHECKING:
    from datetime import datetime

    from cryptography import x509

    from hopper_common.identity.rotation import Step
    from hopper_common.identity.store import Identity
    from hopper_common.settings import HostSettings

_SERVICE: Final = "/svc/"


def _services(incomplete: str) -> list[str]:
    from importlib.metadata import entry_points

    names = sorted(entry.name for entry in entry_points(group="hopper.services"))
    offers = [f"{_SERVICE}{name}" for name in names] if incomplete.startswith("/") else names
    return [offer for offer in offers if offer.startswith(incomplete)]


PassphraseFile = Annotated[
    str | None,
    typer.Option(
        "--passphrase-file",
        metavar="FILE",
        help="A file with the passphrase, which only you may read, or - for standard input. Default: it is asked for.",
    ),
]
Yes = YesOption


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    group = typer.Typer(no_args_is_help=True, help="Who this Hopper is: its name, its keys, a copy of them.")
    app.add_typer(group, name="identity", rich_help_panel=SET_UP)
    command(group, "show", examples=("hopper identity show", "hopper identity show --json"))(show)
    command(
        group,
        "backup",
        examples=(
            "hopper identity backup ~/hopper-identity.backup",
            "hopper identity backup b.backup --passphrase-file ~/.hopper-backup-passphrase",
        ),
    )(backup)
    command(
        group,
        "restore",
        examples=(
            "hopper identity restore ~/hopper-identity.backup",
            "hopper identity restore b.backup --overwrite",
        ),
    )(restore)
    command(
        group,
        "issue",
        examples=(
            "hopper identity issue registry",
            "hopper identity issue /svc/registry --to /srv/registry/identity --lifetime 7d",
        ),
    )(issue)

    rotation = typer.Typer(
        no_args_is_help=True, help="Replace the root certificate while everything goes on."
    )
    app.add_typer(rotation, name="ca", rich_help_panel=SET_UP)
    command(rotation, "status", examples=("hopper ca status",))(status)
    command(rotation, "rotate", examples=("hopper ca rotate", "hopper ca rotate --now"))(rotate)
    command(rotation, "prepare", examples=("hopper ca prepare",))(prepare)
    command(rotation, "activate", examples=("hopper ca activate",))(activate)
    command(rotation, "taint", examples=("hopper ca taint",))(taint)
    command(rotation, "revoke", examples=("hopper ca revoke", "hopper ca revoke --yes"))(revoke)


# hopper identity


def show(cli: Cli) -> None:
    """Show this Hopper's name, roots and keys. The nine groups are what owners compare."""
    with _identity() as identity:
        shown = _described(identity)
        if cli.json:
            cli.out.document(shown)
            return
        _say_identity(cli, identity, shown)


def backup(
    cli: Cli,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it.")],
    passphrase_file: PassphraseFile = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE, if there is one.")] = False,
) -> None:
    """
    Write an encrypted copy of this Hopper's keys. With its passphrase, whoever has it is this Hopper.

    Make another after each rotation of the root: an older one would bring back a root that peers no longer trust.
    """
    from hopper_cli.problems import CommandError
    from hopper_common.identity.backup import back_up
    from hopper_common.identity.files import write_private

    if file.exists() and not force:
        raise CommandError(f"{file} exists already", remedy="say --force to replace it", reason="FILE_EXISTS")
    with _identity() as identity:
        content = back_up(identity, _passphrase(passphrase_file, twice=True))
        try:
            write_private(file.absolute(), content)
        except OSError as error:
            raise CommandError(
                f"{file} cannot be written: {error.strerror}", reason="FILE_NOT_WRITTEN"
            ) from error
        if cli.json:
            cli.out.document({"install_id": identity.install_id, "file": str(file), "bytes": len(content)})
            return
        cli.out.say(f"{file}: {_spelled(identity)}, {len(content)} bytes, sealed")
        cli.out.note(
            "keep the passphrase somewhere else; make another backup after each rotation of the root"
        )


def restore(
    cli: Cli,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A backup.")],
    passphrase_file: PassphraseFile = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Take the place of an identity that is there; it is kept beside it."
        ),
    ] = False,
) -> None:
    """Make the identity of a backup this Hopper's own. Hopper must not be running."""
    from hopper_cli.problems import UsageProblem
    from hopper_common.clock import SystemClock
    from hopper_common.identity.backup import refuse_if_running
    from hopper_common.identity.backup import restore as restore_backup

    try:
        content = file.read_bytes()
    except OSError as error:
        raise UsageProblem(f"{file} cannot be read: {error.strerror}") from None
    settings = _settings()
    with _told():
        refuse_if_running(settings.data_dir)
        identity = restore_backup(
            content,
            _passphrase(passphrase_file),
            settings.identity_path,
            SystemClock(),
            name=str(file),
            overwrite=overwrite,
            root_passphrase=_root_passphrase(settings),
        )
        if cli.json:
            cli.out.document(_described(identity))
            return
        cli.out.say(f"this Hopper is {_spelled(identity)} now, in {identity.directory}")


def issue(
    cli: Cli,
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH", help="For whom: registry, or /svc/registry, /agent/ID.", autocompletion=_services
        ),
    ],
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            metavar="DIR",
            help="The identity directory of that process (its HOPPER_IDENTITY_DIR); made if there is none. Default: "
            "this one's, where whoever can open the root's key renews it by itself.",
        ),
    ] = None,
    lifetime: Annotated[
        str | None,
        typer.Option("--lifetime", metavar="TIME", help="How long it is good, such as 7d. Default: 72h."),
    ] = None,
) -> None:
    """Issue a certificate for a process that does not hold the root's key. It looks for a new one every second."""
    from hopper_cli.problems import UsageProblem
    from hopper_cli.times import format_time, parse_duration
    from hopper_common.identity.issuing import issue_into
    from hopper_common.identity.spiffe import SpiffeInvalid

    length = None if lifetime is None else parse_duration(lifetime)
    full = path if path.startswith("/") else f"{_SERVICE}{path}"
    with _identity() as identity:
        where = identity.directory if to is None else to.expanduser().absolute()
        try:
            file, leaf = issue_into(identity, full, where, lifetime=length)
        except SpiffeInvalid as error:
            raise UsageProblem(str(error)) from None
        if cli.json:
            cli.out.document({"path": full, "file": str(file), "expire_time": leaf.not_after.isoformat()})
            return
        cli.out.say(f"{file}: {full}, good until {format_time(leaf.not_after, cli.now)}")


# hopper ca


def status(cli: Cli) -> None:
    """Show the roots, the stage of each, and the next move of the rotation."""
    with _identity() as identity:
        _say_status(cli, identity)


def rotate(
    cli: Cli,
    now: Annotated[bool, typer.Option("--now", help="Make the next move even if it is not due yet.")] = False,
    yes: Yes = False,
) -> None:
    """
    Make the next move of a rotation: prepare at once, and each of the others when it is due.

    A running Hopper makes them by itself when they are due, and activates as soon as all peers know the new root:
    `hopper ca rotate` once is enough.
    """
    from hopper_cli.exits import Exit
    from hopper_cli.problems import CommandError
    from hopper_cli.times import format_time
    from hopper_common.identity.rotation import Verb

    with _identity() as identity:
        step = identity.next_step()
        if step.verb is not Verb.PREPARE and step.due > identity.now() and not now:
            raise CommandError(
                f"the next move, {step.verb}, is due {format_time(step.due, cli.now)}",
                remedy="--now makes it at once; a running Hopper makes it by itself when it is due",
                exit_code=Exit.NOTHING_TO_DO,
                reason="NOTHING_TO_DO",
            )
        _move(cli, identity, step.verb, yes=yes)


def prepare(cli: Cli) -> None:
    """Make the next root, and tell peers of it. It issues nothing yet."""
    _move_to(cli, "prepare")


def activate(cli: Cli) -> None:
    """
    Issue certificates from the next root.

    Peers that have not yet heard of it have to ask for it before they answer again: give them time.
    """
    _move_to(cli, "activate")


def taint(cli: Cli) -> None:
    """Replace at once what the old root has issued."""
    _move_to(cli, "taint")


def revoke(cli: Cli, yes: Yes = False) -> None:
    """Trust the old root no longer, and destroy its key."""
    _move_to(cli, "revoke", yes=yes)


def _move_to(cli: Cli, verb: str, *, yes: bool = False) -> None:
    with _identity() as identity:
        _move(cli, identity, verb, yes=yes)


def _move(cli: Cli, identity: "Identity", verb: str, *, yes: bool) -> None:
    from hopper_common.identity.rotation import Verb

    if verb == Verb.REVOKE and identity.next_step().verb is Verb.REVOKE:
        confirm(cli, "Destroy the key of the old root?", yes)
    identity.move(Verb(verb))
    _say_status(cli, identity)
    if verb == Verb.ACTIVATE:
        cli.out.note("make a new backup: `hopper identity backup`")


# What they share.


@contextmanager
def _identity() -> "Iterator[Identity]":
    """The identity of the data directory, which must be there."""
    from hopper_cli.exits import Exit
    from hopper_cli.problems import CommandError
    from hopper_common.clock import SystemClock
    from hopper_common.identity.state import Directory
    from hopper_common.identity.store import IdentityStore

    settings = _settings()
    directory = settings.identity_path
    if not Directory(directory).exists():
        raise CommandError(
            f"there is no identity in {directory}",
            remedy="`hopper up` makes one when it starts; HOPPER_DATA_DIR says where",
            exit_code=Exit.NOT_FOUND,
            reason="IDENTITY_NOT_FOUND",
        )
    with _told():
        yield IdentityStore.open(
            directory, SystemClock(), passphrase=_root_passphrase(settings), create=False
        )


@contextmanager
def _told() -> Iterator[None]:
    """Errors about files as errors of this command; and no log between its lines."""
    import logging
    import re

    import structlog

    from hopper_cli.problems import CommandError
    from hopper_common.identity.errors import IdentityRefused

    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    except IdentityRefused as error:
        reason = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(error).__name__).upper()
        raise CommandError(str(error), reason=reason) from error
    finally:
        structlog.configure(**before)


def _settings() -> "HostSettings":
    from hopper_common.settings import load_settings

    return load_settings()


def _root_passphrase(settings: "HostSettings") -> bytes | None:
    from hopper_common.identity.store import read_passphrase

    file = settings.identity_passphrase_file
    return None if file is None else read_passphrase(file)


def _passphrase(file: str | None, *, twice: bool = False) -> bytes:
    """The passphrase of a backup: from a file, from standard input, or from whoever types."""
    import sys

    from hopper_cli.inputs import read_bytes_from_stdin
    from hopper_cli.problems import UsageProblem
    from hopper_common.identity.store import read_passphrase

    if file == "-":
        given = read_bytes_from_stdin().rstrip(b"\r\n")
    elif file is not None:
        given = read_passphrase(Path(file).expanduser())
    elif sys.stdin.isatty():
        given = typer.prompt("Passphrase", hide_input=True, confirmation_prompt=twice, err=True).encode()
    else:
        raise UsageProblem(
            "there is nobody to ask for the passphrase", remedy="say --passphrase-file FILE, or -"
        )
    if not given:
        raise UsageProblem("the passphrase is empty")
    return given


def _spelled(identity: "Identity") -> str:
    from hopper_common.identity.spiffe import shown

    return shown(identity.install_id)


def _described(identity: "Identity") -> dict[str, Any]:
    from hopper_common.identity import signing
    from hopper_common.timestamps import from_proto

    bundle = identity.trust_bundle()
    key = signing.in_use(bundle.signing_keys, identity.now())
    return {
        "install_id": identity.install_id,
        "shown": _spelled(identity),
        "trust_domain": identity.trust_domain,
        "directory": str(identity.directory),
        "incarnation": identity.incarnation,
        "root_key": _root_key(identity),
        "signing_key": None
        if key is None
        else {"key_id": key.key_id, "expire_time": from_proto(key.not_after).isoformat()},
        "leaves": [
            {"path": path, "expire_time": leaf.not_after.isoformat()}
            for path, leaf in identity.issued_leaves().items()
        ],
        **_rotation(identity),
    }


def _root_key(identity: "Identity") -> str:
    if identity.sealed:
        return "sealed" if identity.has_root else "sealed, and no passphrase for it"
    return "here" if identity.has_root else "elsewhere"


def _rotation(identity: "Identity") -> dict[str, Any]:
    step = identity.next_step()
    return {
        "sequence": identity.trust_bundle().sequence,
        "roots": [
            {
                "key_hash": _hash(root),
                "stage": stage,
                "stage_time": since.isoformat(),
                "expire_time": root.not_valid_after_utc.isoformat(),
            }
            for root, stage, since in _roots(identity)
        ],
        "next": {"verb": step.verb.value, "due_time": step.due.isoformat()},
    }


def _hash(root: "x509.Certificate") -> str:
    from hopper_common.identity.certificates import key_hash

    return key_hash(root)[:16].hex()


def _roots(identity: "Identity") -> "list[tuple[x509.Certificate, str, datetime]]":
    from hopper_common.identity.rotation import stage_word

    stages = [stage_word(root.stage) for root in identity.trust_bundle().roots]
    return [
        (root, stage, identity.stage_time(root))
        for root, stage in zip(identity.listed_roots(), stages, strict=True)
    ]


def _say_identity(cli: Cli, identity: "Identity", shown: dict[str, Any]) -> None:
    from hopper_cli.render import facts

    key = shown["signing_key"]
    cli.out.say(_spelled(identity), style="bold")
    cli.out.say(
        facts(
            [
                ("install id", identity.install_id),
                ("trust domain", identity.trust_domain),
                ("files", str(identity.directory)),
                ("root's key", shown["root_key"]),
                ("signing key", key["key_id"] if key else "none"),
                ("issued for", ", ".join(leaf["path"] for leaf in shown["leaves"])),
            ]
        )
    )
    cli.out.say()
    _say_roots(cli, identity)


def _say_status(cli: Cli, identity: "Identity") -> None:
    if cli.json:
        cli.out.document(_rotation(identity))
        return
    _say_roots(cli, identity)
    cli.out.say(_next(identity.next_step(), cli.now))


def _say_roots(cli: Cli, identity: "Identity") -> None:
    from hopper_cli.render import grid
    from hopper_cli.times import format_time

    table = grid("root", "stage", "since", "good until")
    for root, stage, since in _roots(identity):
        table.add_row(_hash(root), stage, format_time(since, cli.now), f"{root.not_valid_after_utc:%Y-%m-%d}")
    cli.out.say(table)


def _next(step: "Step", now: "datetime") -> str:
    from hopper_cli.times import format_time
    from hopper_common.identity.rotation import Verb

    if step.verb is Verb.PREPARE:
        return f"nothing is being rotated; a new root is prepared by itself {format_time(step.due, now)}"
    known = ", as soon as all peers know the new root" if step.verb is Verb.ACTIVATE else ""
    return (
        f"next: {step.verb}, by itself {format_time(step.due, now)}{known} or now by `hopper ca {step.verb}`"
    )
