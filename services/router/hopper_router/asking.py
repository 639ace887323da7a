"""
Asking a person where a task goes: the question, with the shortlist, and what its answer means. Pure.

The task itself waits in INPUT_REQUIRED, in nobody's hands, and `AnswerTask` answers it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from hopper_router.cascade import Stage, Use
from hopper_router.filters import id_of
from hopper_router.model import Candidate, InputRequest, Instance, Opinion, Project, Word

NOBODY: Final = "none"
_SURE: Final = 1.0


def where_to(
    candidates: Sequence[Candidate], stage: Stage, instances: Mapping[str, Instance]
) -> InputRequest:
    """The question where a task goes, for the one whose desk it is."""
    shortlist = ", ".join(f"{id_of(one.project)} ({one.confidence:.0%})" for one in candidates)
    question = f"Where does this task go? {shortlist}, another project, or {NOBODY}"
    return InputRequest(question, from_=_whose(stage.desk, instances))


def _whose(desk: str, instances: Mapping[str, Instance]) -> str:
    """Who sits at a desk: its only member, or the desk itself."""
    instance = instances.get(desk)
    if instance is not None and len(instance.members) == 1:
        return min(instance.members)
    return desk.rpartition("/")[2]


def chosen(answer: str, projects: Mapping[str, Project]) -> Opinion | None:
    """What somebody answered: a project's id or name, or `none`; None: it is neither."""
    said = answer.strip().strip("`'\"").casefold()
    if said in (NOBODY, "nobody", "nothing"):
        return Opinion(Use.PERSON.value, Word.NOTHING_FITS, confidence=_SURE)
    name = f"projects/{said.removeprefix('projects/')}"
    if name not in projects:
        return None
    return Opinion(Use.PERSON.value, Word.CHOICE, name, _SURE)
