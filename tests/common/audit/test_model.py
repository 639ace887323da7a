"""What a record can hold, and what it cannot."""

import pytest

from hopper_common.audit.model import OPENED, UNREADABLE, Decision, cleaned

GOOD = Decision(
    principal="principals/ann",
    acting_for="",
    credential="key:7k2m9q",
    source="10.0.0.1",
    method="/hopper.router.v1.TaskService/SubmitTask",
    allowed=False,
    reason="PERMISSION_DENIED",
    rule="role viewer on instances/moodle",
    resources=("instances/moodle",),
)
SECRETS = {
    "an API key": "hop_7k2m9q_" + "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7bC0eF3hI6kL9nO2r_x1Y2z3",
    "a token": "eyJhbGciOiJFUzI1NiIsImtpZCI6IjEifQ.eyJzdWIiOiJhbm4iLCJhdWQiOiJyb3V0ZXIifQ.c2lnbmF0dXJlLXNpZ25hdHVyZQ",
    "a task's title": "call the dentist about the bill of Ann Miller",
    "a private key": "-----BEGIN PRIVATE KEY-----",
    "an escape": "instances/\x1b[2Jx",
    "two lines": "owner\nprincipals/root",
}


@pytest.mark.parametrize(
    "principal",
    [
        "owner",
        "stranger",
        "principals/a.b_c-d",
        "spiffe://abcdefgh.hopper/svc/router",
        "spiffe://abcdefgh.hopper",
    ],
)
def test_principals_are_kept(principal: str) -> None:
    assert cleaned(GOOD._replace(principal=principal)).principal == principal


@pytest.mark.parametrize("source", ["unix", "127.0.0.1", "::1", "2001:db8::7", ""])
def test_sources_are_kept(source: str) -> None:
    assert cleaned(GOOD._replace(source=source)).source == source


@pytest.mark.parametrize(
    "resource",
    [
        "instances/moodle",
        "instances/global/tasks/01jxyz",
        "projects/web/workers/Ann.Laptop@home+2-x_y",
        "projects/web",
        "principals/ann/keys/7k2m9q",
        "//abcdefgh.hopper/instances/global/tasks/01jxyz",
        "chains/hopper",
    ],
)
def test_names_of_resources_are_kept(resource: str) -> None:
    assert cleaned(GOOD._replace(resources=(resource,))).resources == (resource,)


def test_what_is_in_shape_is_kept_as_it_is() -> None:
    assert cleaned(GOOD) == GOOD
    assert cleaned(GOOD._replace(method=OPENED)).method == OPENED


@pytest.mark.parametrize("field", ["principal", "acting_for", "credential", "source", "method", "reason"])
@pytest.mark.parametrize("what", SECRETS)
def test_nothing_else_gets_in(field: str, what: str) -> None:
    kept = cleaned(GOOD._replace(**{field: SECRETS[what]}))  # type: ignore[arg-type]
    assert getattr(kept, field) == UNREADABLE


@pytest.mark.parametrize("what", SECRETS)
@pytest.mark.parametrize(
    "around", ["{}", "instances/{}", "instances/moodle/tasks/{}", "projects/x/workers/{}", "//{}/a/b"]
)
def test_nor_by_the_names_of_resources(what: str, around: str) -> None:
    kept = cleaned(GOOD._replace(resources=(around.format(SECRETS[what]), "instances/moodle")))
    assert kept.resources == (UNREADABLE, "instances/moodle")


def test_a_rule_is_one_short_plain_line() -> None:
    rule = cleaned(GOOD._replace(rule="a\nb\x1b\u202e" + "c" * 1000)).rule
    assert rule == "a?b??" + "c" * 195


def test_eight_resources_are_kept() -> None:
    many = tuple(f"instances/i{n}" for n in range(20))
    assert cleaned(GOOD._replace(resources=many)).resources == many[:8]
