"""Options that take a number: never NaN, and infinite only where that means something.

A bound alone lets NaN through, for NaN is neither below nor above anything: a limit of NaN is no limit.
"""

import math
from collections.abc import Callable

import typer


def number(*, over: float = -math.inf, may_be_infinite: bool = False) -> Callable[[float | None], float | None]:
    """Return what checks an option's value, as ``typer.Option(min=0, callback=number())``.

    Parameters
    ----------
    over
        What is itself too small; an option's ``min`` is not.
    may_be_infinite
        Whether ``inf`` is a value.
    """
    allowed = "a number" if may_be_infinite else "a finite number"
    allowed += "" if math.isinf(over) else f", more than {over:g}"

    def check(value: float | None) -> float | None:
        if value is not None and (not value > over or (math.isinf(value) and not may_be_infinite)):
            raise typer.BadParameter(f"got {value:g}; allowed: {allowed}")
        return value

    return check
