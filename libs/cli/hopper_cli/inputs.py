"""Values of options: read, checked, refused with a word about what would be right."""

import getpass
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final

from hopper_cli.problems import UsageProblem
from hopper_cli.times import parse_duration

PRIORITIES: Final[Mapping[str, int]] = {"low": 25, "normal": 50, "high": 75, "urgent": 95}
_NOT_OF_A_WORKER_ID: Final = re.compile(r"[^A-Za-z0-9._@+-]")


def parse_priority(text: str) -> int:
    """`low`, `normal`, `high`, `urgent`, or a number from 0 to 100."""
    named = PRIORITIES.get(text.strip().lower())
    if named is not None:
        return named
    if re.fullmatch(r"\d{1,3}", text.strip(), re.ASCII) and int(text) <= 100:
        return int(text)
    raise UsageProblem(f"{text!r} is no priority", remedy="write low, normal, high, urgent, or 0 to 100")


def parse_pairs(items: Iterable[str], option: str) -> dict[str, str]:
    """`KEY=VALUE` items as a dictionary."""
    pairs = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise UsageProblem(f"{option} {item!r} is no KEY=VALUE")
        pairs[key] = value
    return pairs


def parse_boosts(items: Iterable[str]) -> dict[str, float]:
    """`TAG=NUMBER` items as a dictionary."""
    boosts = {}
    for tag, number in parse_pairs(items, "--boost").items():
        try:
            boosts[tag] = float(number)
        except ValueError:
            raise UsageProblem(f"--boost {tag}={number}: {number!r} is no number") from None
    return boosts


def parse_rate(text: str) -> tuple[int, timedelta] | None:
    """
    How many in which time, of `10/s`, `100/min` or `5/30s`; None for `none`.

    Raises:
        UsageProblem: It is no rate.
    """
    if text.strip().lower() == "none":
        return None
    count, _, period = text.partition("/")
    if not re.fullmatch(r"\d+", count.strip(), re.ASCII) or not period.strip():
        raise UsageProblem(f"{text!r} is no rate", remedy="write it like 10/s, 100/min, 5/30s, or none")
    period = period.strip()
    return int(count), parse_duration(period if period[0].isdigit() else f"1{period}")


def read_text(value: str) -> str:
    """The text itself, or standard input for `-`."""
    return read_bytes_from_stdin().decode("utf-8", "replace") if value == "-" else value


def read_bytes(value: str) -> bytes:
    """The content of a file, or of standard input for `-`."""
    return read_bytes_from_stdin() if value == "-" else file_at(value).read_bytes()


def read_file_text(value: str) -> str:
    """The content of a text file, or of standard input for `-`."""
    try:
        return read_bytes(value).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageProblem(f"{value} is not UTF-8 text (byte {error.start})") from None


def read_bytes_from_stdin() -> bytes:
    """Standard input, to its end."""
    return sys.stdin.buffer.read()


@contextmanager
def open_lines(value: str) -> Iterator[Iterator[str]]:
    """The lines of a text file of any length, or of standard input for `-`. What is no UTF-8 reads as U+FFFD."""
    if value == "-":
        yield (line.decode("utf-8", "replace") for line in sys.stdin.buffer)
        return
    with file_at(value).open(encoding="utf-8", errors="replace", newline="\n") as file:
        yield file


def file_at(value: str) -> Path:
    """
    A file that can be read.

    Raises:
        UsageProblem: There is none.
    """
    path = Path(value).expanduser()
    if not path.exists():
        raise UsageProblem(f"there is no file {value}")
    if path.is_dir():
        raise UsageProblem(f"{value} is a directory")
    if not os.access(path, os.R_OK):
        raise UsageProblem(f"{value} cannot be read: you lack the permission")
    return path


def me() -> str:
    """
    Who types, as a worker id: `$HOPPER_WORKER`, else the login name, without what such ids may not have.
    """
    name = os.environ.get("HOPPER_WORKER") or _login()
    return (_NOT_OF_A_WORKER_ID.sub("-", name).lstrip("._@+-") or "me")[:63]


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid-{os.getuid()}"


def local_zone() -> str:
    """The IANA name of the time zone of whoever types: `$TZ`, else that of this machine; UTC where it has none."""
    named = os.environ.get("TZ", "").removeprefix(":")
    linked = os.path.realpath("/etc/localtime").partition("/zoneinfo/")[2]
    for name in (named, linked):
        if "/" in name and not name.startswith("/"):
            return name.removeprefix("posix/").removeprefix("right/")
    return "UTC"


def data_dir() -> Path:
    """Where this user's Hopper keeps its data: `$HOPPER_DATA_DIR`, else `~/.hopper`."""
    return Path(os.environ.get("HOPPER_DATA_DIR") or "~/.hopper").expanduser().absolute()


def changed(present: Iterable[str], add: Iterable[str], remove: Iterable[str]) -> list[str]:
    """A list after additions and removals, in its order, without repeats."""
    gone = set(remove)
    return [item for item in dict.fromkeys([*present, *add]) if item not in gone]
