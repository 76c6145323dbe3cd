"""What commands that ask a running program share: a token from one place, and options that each of them has.

A token comes from a file, the environment or a flag, and appears in no message.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from tierline.errors import UsageError

T = TypeVar("T")


def read_token(token: str, token_file: Path | None, variable: str) -> str:
    """Return the token of a flag or of ``variable``, or else that of a file; empty for none.

    Raises
    ------
    UsageError
        The file cannot be read, or there are two tokens.
    """
    if token_file is None:
        return token
    if token:
        raise UsageError(f"--token-file: there is a token already, from --token or {variable}; keep one")
    try:
        return token_file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UsageError(f"--token-file: cannot read {token_file}: {reason}") from error


def with_options(
    work: Callable[..., Any], options: Callable[..., T], run: Callable[[T, dict[str, Any]], None]
) -> Callable[..., None]:
    """Make a command that calls ``run`` with what ``options`` made of its parameters, and with the others.

    The command has the parameters of ``work`` but the first two, which ``run`` gives it, and behind them those of
    ``options``.
    """
    shared = inspect.signature(options).parameters
    own = list(inspect.signature(work).parameters.values())[2:]

    @wraps(work)
    def command(**given: Any) -> None:
        made = options(**{name: given.pop(name) for name in shared})
        run(made, given)

    # Typer reads both: what the command takes, and the types of that.
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in [*own, *shared.values()]]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command
