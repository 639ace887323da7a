"""Page tokens fit the request that made them, and no other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopper.registry.v1.instance_service_pb2 import ListInstancesRequest
from hopper.registry.v1.project_service_pb2 import ListProjectsRequest
from hopper_common.errors import InvalidArgument, PageTokenInvalid
from hopper_common.pagination import PageTokens, page_size

VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
TOKENS = PageTokens()
REQUEST = ListProjectsRequest(tag="python")


@given(st.dictionaries(st.text(), VALUES))
def test_a_token_brings_back_its_cursor(cursor: dict[str, object]) -> None:
    assert TOKENS.decode(TOKENS.encode(cursor, REQUEST), REQUEST) == cursor


def test_the_next_page_may_have_another_size_and_carries_the_token() -> None:
    token = TOKENS.encode({"after": 7}, REQUEST)
    following = ListProjectsRequest(tag=REQUEST.tag, page_size=3, page_token=token)
    assert TOKENS.decode(token, following) == {"after": 7}


def test_no_token_is_the_first_page() -> None:
    assert TOKENS.decode("", REQUEST) == {}


@pytest.mark.parametrize("other", [ListProjectsRequest(tag="rust"), ListInstancesRequest()])
def test_another_request_is_refused(other: ListProjectsRequest | ListInstancesRequest) -> None:
    with pytest.raises(PageTokenInvalid):
        TOKENS.decode(TOKENS.encode({"after": 7}, REQUEST), other)


def test_an_empty_request_of_another_method_is_refused() -> None:
    with pytest.raises(PageTokenInvalid):
        TOKENS.decode(TOKENS.encode({"after": 7}, ListProjectsRequest()), ListInstancesRequest())


def test_a_token_of_another_deployment_is_refused() -> None:
    with pytest.raises(PageTokenInvalid):
        PageTokens(b"theirs").decode(PageTokens(b"ours").encode({}, REQUEST), REQUEST)


@given(st.text(min_size=1) | st.binary(min_size=1).map(lambda data: data.hex()))
def test_what_was_never_a_token_is_refused(text: str) -> None:
    with pytest.raises(PageTokenInvalid):
        TOKENS.decode(text, REQUEST)


@given(st.data())
def test_a_token_with_one_changed_character_is_refused(data: st.DataObject) -> None:
    token = TOKENS.encode({"after": 7, "name": "projects/x"}, REQUEST)
    place = data.draw(st.integers(0, len(token) - 2))  # the last one has spare bits
    letter = data.draw(st.sampled_from("abcXYZ019-_").filter(lambda letter: letter != token[place]))
    with pytest.raises(PageTokenInvalid):
        TOKENS.decode(token[:place] + letter + token[place + 1 :], REQUEST)


@pytest.mark.parametrize(("requested", "given_size"), [(0, 50), (1, 1), (1000, 1000), (5000, 1000)])
def test_a_page_has_a_default_and_a_maximum(requested: int, given_size: int) -> None:
    assert page_size(requested) == given_size


def test_a_negative_page_size_is_refused_by_name() -> None:
    with pytest.raises(InvalidArgument) as caught:
        page_size(-1)
    assert [violation.field for violation in caught.value.violations] == ["page_size"]
