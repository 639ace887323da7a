"""What a check is, and how it says what is broken."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from hopper_common.errors import InvalidArgument, UnknownField
from hopper_common.rpc.limits import check_limits

if TYPE_CHECKING:
    from hopper_testing.sage_conformance.stage import Sage

T = TypeVar("T")


class Broken(Exception):
    """The Sage does not keep to the contract."""


class NotApplicable(Exception):
    """The check is about what this Sage does not offer, or needs what the suite was not given."""


@dataclass(frozen=True, slots=True)
class Check:
    """
    One thing that every Sage does.

    Attributes:
        name: For choosing it.
        promise: One sentence for people.
    """

    name: str
    promise: str
    run: Callable[[Sage], Awaitable[None]]


def hold(condition: object, complaint: str) -> None:
    """
    Insist on a condition.

    Raises:
        Broken: It does not hold.
    """
    if not condition:
        raise Broken(complaint)


async def refused(call: Awaitable[Any], what: str, *codes: grpc.StatusCode) -> None:
    """
    Insist that a call is refused with one of these codes.

    Raises:
        Broken: It was answered, or refused otherwise.
    """
    wanted = " or ".join(code.name for code in codes)
    try:
        await call
    except grpc.aio.AioRpcError as error:
        hold(error.code() in codes, f"{what}: refused with {error.code().name} instead of {wanted}")
    else:
        raise Broken(f"{what}: answered instead of refused with {wanted}")


async def answered(call: Awaitable[T], what: str) -> T:
    """
    Insist that a call is answered.

    Raises:
        Broken: It was not.
    """
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        _not_answered(what, error)


def _not_answered(what: str, error: grpc.aio.AioRpcError) -> NoReturn:
    raise Broken(f"{what}: {error.code().name} instead of an answer: {error.details()}") from error


def keeps_limits(message: Message, what: str) -> None:
    """
    Insist that an answer keeps to the limits that its fields declare.

    Raises:
        Broken: Names every field that does not.
    """
    try:
        check_limits(message)
    except UnknownField as error:
        raise Broken(f"{what}: fields that the contract does not have: {dict(error.metadata)}") from error
    except InvalidArgument as error:
        raise Broken(f"{what}: {error.message}") from error


def printable(words: str, what: str) -> None:
    """
    Insist on one line of printable text.

    Raises:
        Broken: There is a control, a line break or an invisible mark in it.
    """
    hold(words.isprintable(), f"{what} is not one line of printable text: {words!r}")
