"""What Kubernetes' quantities say: ``4``, ``500m``, ``30Gi``."""

import re
from decimal import Decimal

_FORM = re.compile(
    r"(?P<number>[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+))"
    r"(?P<unit>[KMGTPE]i|[numkMGTPE]|[eE](?P<exponent>[+-]?[0-9]+))?",
    re.ASCII,
)
_UNITS = {f"{prefix}i": Decimal(1024) ** power for power, prefix in enumerate("KMGTPE", start=1)} | {
    unit: Decimal(10) ** power
    for unit, power in {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}.items()
}


def amount(quantity: int | str) -> Decimal:
    """Return what a quantity says.

    Raises
    ------
    ValueError
        It is none; the message says what one is.
    """
    found = _FORM.fullmatch(str(quantity))
    if found is None:
        raise ValueError("a quantity such as 4, 500m or 30Gi")
    number = Decimal(found["number"])
    if found["exponent"] is not None:
        return number * Decimal(10) ** int(found["exponent"])
    return number * _UNITS[found["unit"]] if found["unit"] else number
