"""Logging of every program: structlog to standard error, for people or as one JSON object a line.

Events are short lower-case sentences with their values as keys (``log.info("endpoint failed", endpoint=url)``).
Prompts, answers, token ids and credentials are never logged, at any level. What is logged for one request has its
``x-request-id`` under the key ``request_id``, in every program (:func:`tierline.tracing.context.working_for`).
"""

import logging
import sys
from contextvars import ContextVar
from typing import Literal

import structlog

request_id: ContextVar[str] = ContextVar("tierline_request_id", default="")
"""Of the request that a task, or a thread, works for; empty where that has none.

Read only where something is logged: structlog's own context costs each request ten times as much.
"""


def configure(level: Literal["debug", "info", "warning", "error"] = "info", *, json: bool = False) -> None:
    """Send our own events and those of libraries that use :mod:`logging` to standard error, in one form.

    Parameters
    ----------
    level
        What is less severe is dropped; libraries are heard from ``warning`` on, unless ``level`` is ``debug``.
    json
        One JSON object a line instead of text for people.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_request_id,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if json
        else [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                exception_formatter=structlog.dev.plain_traceback,  # rich's shows local variables: tokens, prompts
            )
        ]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel("WARNING" if level == "info" else level.upper())
    logging.getLogger("tierline").setLevel(level.upper())
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def get(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger of a module: ``log = logs.get(__name__)``."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def _add_request_id(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    if told := request_id.get():
        event.setdefault("request_id", told)
    return event
