"""What the demo runs on: teams, rules, tasks whose right team is known."""

import gzip
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any, Final

import yaml

from hopper.registry.v1.project_pb2 import Project
from hopper_cli.problems import UsageProblem
from hopper_cli.project_specs import read_projects

MOST_TITLE: Final = 300
MOST_DESCRIPTION: Final = 4000
_DATA: Final = files("hopper_cli") / "demo_data"
# The demo's rules were written after a look at the stream's beginning; only what comes after tells how good they are.
_LOOKED_AT: Final = 2000
_OPINION: Final = 0.1
# In a checkout, real tasks may lie beside it: libs/cli/hopper_cli/demo/data.py is five levels down.
_BESIDE: Final = Path(__file__).resolve().parents[5] / "shared/data/routing/multi_project.jsonl.gz"


@dataclass(frozen=True, slots=True)
class Sample:
    """A task, by its line, and the id of the project it belongs to."""

    id: str
    title: str
    description: str
    tags: Sequence[str]
    target: str


@dataclass(frozen=True, slots=True)
class DemoData:
    """
    Everything the demo runs on.

    Attributes:
        source: Where the tasks come from, for people.
        rules: The policy of the root, as YAML.
        learned: The same rules, beside what was learned.
    """

    source: str
    projects: Sequence[tuple[str, Project]]
    rules: str
    learned: str
    samples: Sequence[Sample]

    @property
    def majority(self) -> float:
        """The accuracy of always guessing the most common target."""
        return Counter(sample.target for sample in self.samples).most_common(1)[0][1] / len(self.samples)


def load(count: int, file: str | None) -> DemoData:
    """
    The demo's teams and rules, and *count* tasks.

    Args:
        file: JSON lines, perhaps gzipped, each with title and target; perhaps description, tags. Default:
            real tasks where they lie beside the checkout, else the sample that comes with this package.

    Raises:
        UsageProblem: The file cannot be read, or none of its targets is one of the teams.
    """
    path, skip, source = _choice(file)
    samples = _read(path, count, skip)
    projects = read_projects(path_of("projects.yaml").read_text(encoding="utf-8"), "projects.yaml")
    known = {project_id for project_id, _ in projects}
    if not any(sample.target in known for sample in samples):
        raise UsageProblem(
            f"{path}: no task has one of the demo's teams as its target",
            remedy=f"teams: {', '.join(sorted(known))}",
        )
    rules = path_of("rules.yaml").read_text(encoding="utf-8")
    return DemoData(f"{len(samples)} tasks {source}", projects, rules, _learning(rules), samples)


def _learning(rules: str) -> str:
    # With the weight that they have alone, rules would decide wherever one of them fires.
    return yaml.safe_dump(
        {**yaml.safe_load(rules), "strategy": "learned", "weights": {"rules": _OPINION}}, sort_keys=False
    )


def path_of(name: str) -> Path:
    """A file of the demo, to copy or to apply."""
    return Path(str(_DATA / name))


def _choice(file: str | None) -> tuple[Path, int, str]:
    """Which file, how many of its tasks to leave out first, and what to call the rest."""
    if file:
        path = Path(file).expanduser()
        return path, 0, f"of {path}"
    if _BESIDE.is_file():
        return _BESIDE, _LOOKED_AT, f"of {_BESIDE}, after the {_LOOKED_AT} that the rules were written from"
    return path_of("sample.jsonl"), 0, "made up for it, by those who wrote the rules"


def _read(path: Path, count: int, skip: int) -> list[Sample]:
    try:
        samples = list(islice(_samples(path), skip, skip + count))
    except (OSError, ValueError) as error:
        raise UsageProblem(f"{path} cannot be read: {error}") from None
    if not samples:
        raise UsageProblem(f"{path} has no tasks with a target")
    return samples


def _samples(path: Path) -> Iterator[Sample]:
    with (
        gzip.open(path, "rt", encoding="utf-8")
        if path.suffix == ".gz"
        else path.open(encoding="utf-8") as lines
    ):
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is no object")
            if row.get("target"):
                yield _sample(row, number)


def _sample(row: dict[str, Any], number: int) -> Sample:
    title = " ".join(str(row.get("title", "")).split())
    if not title:
        raise ValueError(f"line {number} has no title")
    return Sample(
        id=str(number),
        title=cut(title, MOST_TITLE),
        description=cut(str(row.get("description") or ""), MOST_DESCRIPTION),
        tags=[str(tag) for tag in row.get("tags") or ()],
        target=str(row["target"]),
    )


def cut(text: str, most_bytes: int) -> str:
    """The text without NUL, cut to at most so many bytes of UTF-8."""
    return text.replace("\0", "").encode("utf-8", "ignore")[:most_bytes].decode("utf-8", "ignore")
