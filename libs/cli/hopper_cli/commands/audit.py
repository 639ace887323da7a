"""`hopper audit`: what was allowed and what was refused, by which rule, and whether anybody has changed that."""

from typing import TYPE_CHECKING, Annotated, Final

import typer

from hopper_cli import complete
from hopper_cli.cli import Cli, command
from hopper_cli.commands.options import SET_UP

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.table import Table

    from hopper.common.v1.audit_service_pb2 import (
        AuditRecord,
        ListAuditRecordsRequest,
        ListAuditRecordsResponse,
        VerifyAuditResponse,
    )
    from hopper_common.audit.chain import Head

_PAGE: Final = 1000
_LONG: Final = 600.0
"""Seconds: a long chain takes a while."""

_FORM: Final = "\n\n".join(
    (
        "Each record carries the SHA-256 of the one before it, and its own: of itself as JSON without `hash`, with "
        "keys sorted, no white space, UTF-8, the time in UTC with six decimals, previous_hash in hexadecimal. A line "
        "of an export is just that, with `hash`, so any program can check one:",
        "  jq -cjS 'del(.hash)' <<< \"$line\" | sha256sum",
        "A chain shows that a record was changed, removed, put in or moved. Whoever can rewrite all of it, or cut off "
        "its end, is found out by an anchor only: the sequence and hash of a record, noted where they cannot reach. "
        "`verify` prints one; the log of `hopper up` has one a day, and every 10,000 records (`audit checkpoint`).",
    )
)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    group = typer.Typer(
        no_args_is_help=True,
        help="What was allowed and what was refused, by which rule: a log that shows when it was changed.",
        epilog=_FORM,
    )
    app.add_typer(group, name="audit", rich_help_panel=SET_UP)
    command(
        group,
        "list",
        examples=(
            "hopper audit list --refused --since 1d",
            "hopper audit list --principal ann --method CancelTask",
            "hopper audit list --method PeerService --json | jq -r '.records[].rule' | sort | uniq -c",
        ),
    )(list_records)
    command(
        group,
        "verify",
        examples=(
            "hopper audit verify",
            'hopper audit verify --anchor "$(cat anchor.txt)"',
            "hopper audit verify --file audit.jsonl",
        ),
        epilog=_FORM,
    )(verify)
    command(
        group,
        "export",
        examples=(
            "hopper audit export > audit.jsonl",
            "hopper audit export --after $(tail -n 1 audit.jsonl | jq .sequence) >> audit.jsonl",
        ),
        epilog=_FORM,
    )(export)


# ---------------------------------------------------------------- list


def list_records(
    cli: Cli,
    refused: Annotated[bool, typer.Option("--refused", help="Only what was refused.")] = False,
    principal: Annotated[
        str,
        typer.Option(
            "--principal",
            "-p",
            metavar="WHO",
            help="Only of this one: a person's or agent's id, owner, stranger, process, or a SPIFFE id.",
            autocompletion=complete.audited,
        ),
    ] = "",
    method: Annotated[
        str,
        typer.Option(
            "--method",
            metavar="METHOD",
            help="Only of this method, or of all of a service: CancelTask, TaskService.",
            autocompletion=complete.methods,
        ),
    ] = "",
    since: Annotated[
        str,
        typer.Option("--since", metavar="TIME", help="Not before: 2h (ago), 17:00, yesterday, 2026-03-01."),
    ] = "",
    until: Annotated[str, typer.Option("--until", metavar="TIME", help="Before.")] = "",
    limit: Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, help="Most to list.")] = 50,
) -> None:
    """
    List decisions about calls, newest first: who, what, and which rule let them through or did not.

    Recorded is whatever changes something, and every refusal. A count is of equal ones within a second.
    """
    request = _request(cli, refused, principal, method, since, until)
    found, more = _found(cli, request, limit)
    if cli.json:
        cli.out.document(found)
    elif not found.records:
        cli.out.note("nothing was refused" if refused else "no record is like that")
    else:
        cli.out.say(_table(cli, found.records))
        if more:
            cli.out.note(f"the newest {limit}; there are more: --limit {10 * limit}")


def _request(
    cli: Cli, refused: bool, principal: str, method: str, since: str, until: str
) -> "ListAuditRecordsRequest":
    from hopper.common.v1.audit_service_pb2 import ListAuditRecordsRequest
    from hopper_cli.methods import method_prefix
    from hopper_cli.names import principal_name
    from hopper_cli.times import parse_past

    request = ListAuditRecordsRequest(
        refused_only=refused,
        principal=principal_name(principal) if principal else "",
        method_prefix=method_prefix(method) if method else "",
    )
    if since:
        request.after_time.FromDatetime(parse_past(since, now=cli.now))
    if until:
        request.before_time.FromDatetime(parse_past(until, now=cli.now))
    return request


def _found(
    cli: Cli, request: "ListAuditRecordsRequest", limit: int
) -> tuple["ListAuditRecordsResponse", bool]:
    """The newest of them, and whether there are more."""
    from hopper.common.v1.audit_service_pb2 import ListAuditRecordsResponse

    found = ListAuditRecordsResponse()
    while len(found.records) < limit:
        request.page_size = min(_PAGE, limit - len(found.records))
        page = cli.hopper.audit.ListAuditRecords(request)
        found.records.extend(page.records)
        request.page_token = page.next_page_token
        if not page.next_page_token:
            return found, False
    return found, True


def _table(cli: Cli, records: "Iterable[AuditRecord]") -> "Table":
    from rich.text import Text

    from hopper_cli.methods import short_method
    from hopper_cli.render import grid, plain
    from hopper_common.timestamps import from_proto

    table = grid("#seq", "time", "who", "from", "method", "#count", "", "by which rule", "about")
    for record in records:
        verdict = Text("allowed", "green") if record.allowed else Text(record.reason or "refused", "bold red")
        table.add_row(
            str(record.sequence),
            f"{from_proto(record.time).astimezone(cli.now.tzinfo):%Y-%m-%d %H:%M:%S}",
            plain(_who(record)),
            plain(record.source),
            plain(short_method(record.method)),
            str(record.count),
            verdict,
            plain(record.rule),
            plain(" ".join(record.resources)),
        )
    return table


def _who(record: "AuditRecord") -> str:
    principal = record.principal.removeprefix("principals/")
    person = record.acting_for.removeprefix("principals/")
    return f"{principal} for {person}" if person else principal


# ---------------------------------------------------------------- verify


def verify(
    cli: Cli,
    anchor: Annotated[
        str,
        typer.Option(
            "--anchor", metavar="SEQ:HASH", help="A record that was noted earlier; the log must have it."
        ),
    ] = "",
    file: Annotated[
        str, typer.Option("--file", metavar="FILE", help="Look at an export; - reads standard input.")
    ] = "",
) -> None:
    """
    Compute the chain anew: was a record changed, removed, put in or moved? Exit code 1 if so.

    With --file nobody is asked. Without --anchor it cannot be seen that the end of an export was cut off.
    """
    from hopper_cli.exits import Exit
    from hopper_common.audit.chain import Head

    noted = _anchor(anchor)
    found = _verify_file(file, noted) if file else _verify(cli, noted)
    if cli.json:
        cli.out.document(found)
    elif found.intact:
        cli.out.say(f"intact: {found.records} records, each follows from the one before")
        if found.head_sequence:
            cli.out.say(f"anchor  {Head(found.head_sequence, found.head_hash)}")
            cli.out.note(
                "note the anchor where whoever could change the log cannot: `--anchor` finds a cut-off end"
            )
    else:
        cli.out.say(f"broken at record {found.broken_sequence}: {found.problem}", style="bold red")
    if not found.intact:
        raise typer.Exit(Exit.FAILED)


def _anchor(text: str) -> "Head | None":
    from hopper_cli.problems import UsageProblem
    from hopper_common.audit.chain import Head

    try:
        return Head.parse(text) if text else None
    except ValueError as error:
        raise UsageProblem(f"--anchor {text}: {error}") from None


def _verify(cli: Cli, noted: "Head | None") -> "VerifyAuditResponse":
    from hopper.common.v1.audit_service_pb2 import VerifyAuditRequest

    request = VerifyAuditRequest()
    if noted is not None:
        request.anchor_sequence, request.anchor_hash = noted
    return cli.hopper.audit.VerifyAudit(request, timeout=max(cli.timeout, _LONG))


def _verify_file(file: str, noted: "Head | None") -> "VerifyAuditResponse":
    from hopper.common.v1.audit_service_pb2 import VerifyAuditResponse
    from hopper_cli.inputs import open_lines
    from hopper_common.audit.chain import ChainCheck, from_line

    check = ChainCheck(after=None, anchors=[] if noted is None else [noted])
    with open_lines(file) as lines:
        for number, line in enumerate(lines, 1):
            try:
                check.add(from_line(line))
            except ValueError as error:
                check.fail(check.head.sequence + 1, f"line {number}: {error}")
            if check.broken:
                break
    verdict = check.result()
    return VerifyAuditResponse(
        intact=verdict.intact,
        records=verdict.records,
        broken_sequence=verdict.broken_sequence,
        problem=verdict.problem,
        head_sequence=verdict.head.sequence,
        head_hash=verdict.head.hash,
    )


# ---------------------------------------------------------------- export


def export(
    cli: Cli,
    after: Annotated[
        int, typer.Option("--after", metavar="N", min=0, help="Only records after this one.")
    ] = 0,
) -> None:
    """
    Print all records, oldest first, a line of JSON each, for keeping elsewhere. `hopper audit verify --file` checks it.
    """
    from hopper.common.v1.audit_service_pb2 import ExportAuditRequest
    from hopper_common.audit.chain import START, head_of, to_line
    from hopper_common.audit.convert import record_from_proto

    head = START
    for part in cli.hopper.audit.ExportAudit(ExportAuditRequest(after_sequence=after), timeout=None):
        for message in part.records:
            record = record_from_proto(message)
            cli.out.line(to_line(record))
            head = head_of(record)
    if head.sequence:
        cli.out.note(f"{head.sequence - after} records; anchor {head}")
    else:
        cli.out.note(f"there is no record after {after}" if after else "there is no record")
