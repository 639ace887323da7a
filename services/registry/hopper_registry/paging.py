"""Lists a page at a time."""

from collections.abc import Iterable
from typing import Any, Final, TypeVar

from google.protobuf.message import Message

from hopper.registry.v1 import instance_pb2 as ipb
from hopper.registry.v1 import principal_pb2 as apb
from hopper.registry.v1 import project_pb2 as ppb
from hopper_common.pagination import PageTokens, page_size

# A page ends early rather than outgrow the 4 MiB that foreign clients accept in one message.
MOST_PAGE_BYTES: Final = 3 * 1024 * 1024

R = TypeVar("R", ppb.Project, ppb.Worker, ipb.Instance, apb.Principal)


def place_of(tokens: PageTokens, request: Any) -> tuple[str, int]:
    """The name that the page begins after, and how many entries it has at most."""
    after: str = tokens.decode(request.page_token, request).get("after", "")
    return after, page_size(request.page_size)


def page_of(entries: Iterable[R], size: int, tokens: PageTokens, request: Message) -> tuple[list[R], str]:
    """
    The entries that fit, and the token of the next page if there are more.

    Args:
        entries: From where the page begins, at least one more than *size* if there are as many.
    """
    page: list[R] = []
    taken = 0
    for entry in entries:
        taken += entry.ByteSize()
        if page and (len(page) == size or taken > MOST_PAGE_BYTES):
            return page, tokens.encode({"after": page[-1].name}, request)
        page.append(entry)
    return page, ""
