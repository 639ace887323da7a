"""The form of the log, and what never gets into it."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from hopper_common import logs
from hopper_common.logs import TASK_TEXT, drop_task_text


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def logged(form: str = "json", level: str = "info", **fields: Any) -> str:
    stream = io.StringIO()
    logs.configure(level=level, form=form, stream=stream)
    structlog.get_logger().info("submitted", **fields)
    logging.getLogger("sqlalchemy").warning("slow %s", "query")
    logging.getLogger("sqlalchemy").info("chatty")
    return stream.getvalue()


def test_json_lines_with_level_and_time() -> None:
    first, second = (json.loads(line) for line in logged(task="instances/a/tasks/b").splitlines())
    assert first.pop("timestamp").endswith("Z")
    assert first == {"event": "submitted", "level": "info", "task": "instances/a/tasks/b"}
    assert (second["event"], second["level"], second["logger"]) == ("slow query", "warning", "sqlalchemy")


def test_auto_is_json_where_nobody_watches() -> None:
    assert json.loads(logged(form="auto").splitlines()[0])["event"] == "submitted"


def test_the_console_is_for_people() -> None:
    text = logged(form="console", task="x")
    assert "submitted" in text
    assert "task=x" in text
    assert not text.startswith("{")


def test_the_level_holds_for_us_and_for_libraries() -> None:
    assert logged(level="error") == ""


@pytest.mark.parametrize("form", ["json", "console"])
def test_task_text_never_gets_in(form: str) -> None:
    fields: dict[str, Any] = dict.fromkeys(TASK_TEXT, "swordfish")
    text = logged(
        form, task="t", spec={"title": "swordfish", "tags": [{"description": "swordfish"}]}, **fields
    )
    assert "swordfish" not in text
    assert "tags" in text


def test_only_task_text_is_dropped() -> None:
    event = {
        "event": "x",
        "title": "t",
        "n": 1,
        "deep": {"payload": b"p", "kept": (1, {"result": 2, "ok": 3})},
    }
    assert drop_task_text(None, "info", event) == {"event": "x", "n": 1, "deep": {"kept": [1, {"ok": 3}]}}


def test_a_traceback_has_no_local_variables() -> None:
    stream = io.StringIO()
    logs.configure(form="json", stream=stream)
    local = "swordfish"
    try:
        raise ValueError(len(local))
    except ValueError:
        structlog.get_logger().exception("failed")
    entry = json.loads(stream.getvalue())
    assert "ValueError: 9" in entry["exception"]
    assert "swordfish" not in stream.getvalue().replace('local = "swordfish"', "")
