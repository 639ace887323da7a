"""
Logging: structlog to stderr, as JSON lines or for a terminal. What other libraries log arrives in the same
form.

Task text has no business in a log, and nobody logs it on purpose. Should it happen by accident, under one
of the names it has in our messages, `drop_task_text` still keeps it out.
"""

import logging
import sys
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

TASK_TEXT = frozenset({"title", "description", "payload", "result", "text"})


def drop_task_text(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Remove every key, at any depth, under which messages carry what people wrote."""
    return {key: _clean(value) for key, value in event.items() if key not in TASK_TEXT}


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _clean(member) for key, member in value.items() if key not in TASK_TEXT}
    if isinstance(value, list | tuple):
        return [_clean(member) for member in value]
    return value


def configure(*, level: str = "info", form: str = "auto", stream: TextIO | None = None) -> None:
    """
    Set logging up for this process.

    Args:
        level: debug, info, warning or error. Other libraries are held to warning, unless it is error.
        form: json, console, or auto: console where *stream* is a terminal.
        stream: Default: stderr.
    """
    stream = stream or sys.stderr
    terminal = stream.isatty()
    threshold = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        drop_task_text,
    ]
    render = _renderers(json=form == "json" or (form == "auto" and not terminal), colors=terminal)
    structlog.configure(
        processors=[*shared, *render],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(threshold, logging.WARNING))
    # SQLAlchemy gives its own logger a level when it is imported, which would outlive ours.
    logging.getLogger("sqlalchemy").setLevel(root.level)


def _renderers(*, json: bool, colors: bool) -> list[Processor]:
    if json:
        # Tracebacks as text: a structured one would carry local variables, and those carry tasks.
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    return [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)]
