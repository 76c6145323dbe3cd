"""What serving costs: a price list in a file, with its date and its source, and a rule that shares the bill.

The bill is the instances' price over the measured time. Input and output are billed by where requests spent their time:
until the first token for the input, after it for the output. So the two parts are the whole bill, whatever the load.
"""

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tierline.bench.serving.records import Record
from tierline.errors import ConfigurationError, UsageError

_SECONDS_OF_AN_HOUR = 3600
_PER_TOKENS = 1000


class PriceList(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A price list.

    Parameters
    ----------
    dated
        The day on which these prices held.
    source
        Where they are published.
    currency
        In which they are.
    per_hour
        The price of an hour, by instance type.
    """

    dated: dt.date
    source: str
    currency: str
    per_hour: Mapping[str, float]


def read_prices(path: Path) -> PriceList:
    """Read a price list from a YAML or JSON file.

    Raises
    ------
    UsageError
        When there is none, its date or its source are missing, or a price is none.
    """
    try:
        prices = msgspec.yaml.decode(path.read_bytes(), type=PriceList, strict=False)
    except OSError as error:
        raise UsageError(f"--prices: {path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise UsageError(
            f"--prices: {path}: {error}; a price list has `dated`, `source`, `currency` and `per_hour`"
        ) from error
    if not prices.source.strip():
        raise UsageError(f"--prices: {path}: `source` is empty; say where these prices are published")
    for instance_type, price in prices.per_hour.items():
        if not (math.isfinite(price) and price > 0):
            raise UsageError(
                f"--prices: {path}: `per_hour` of {instance_type!r}: got {price}; allowed: a price of more than 0"
            )
    return prices


@dataclass(frozen=True)
class Fleet:
    """What serves, and what it costs."""

    prices: PriceList
    instance_type: str
    instances: int

    def __post_init__(self) -> None:
        if self.instance_type not in self.prices.per_hour:
            known = ", ".join(sorted(self.prices.per_hour))
            raise ConfigurationError("--instance-type", self.instance_type, f"what the price list has: {known}")

    @property
    def per_second(self) -> float:
        """The price of all instances for a second."""
        return self.prices.per_hour[self.instance_type] * self.instances / _SECONDS_OF_AN_HOUR


@dataclass(frozen=True)
class Costs:
    """A bill shared out; ``None`` where there was nothing to share it among."""

    whole: float
    per_1k_input: float | None
    per_1k_output: float | None
    per_1k_tokens: float | None
    per_request: float | None


def costs(records: Sequence[Record], duration_s: float, fleet: Fleet) -> Costs:
    """Share the price of the measured time among the good requests' tokens."""
    whole = fleet.per_second * duration_s
    good = [record for record in records if record.is_good and record.ttft_s is not None]
    until_first = sum(record.ttft_s or 0.0 for record in good)
    in_all = sum(record.latency_s for record in good)
    share = until_first / in_all if in_all else 0.0
    inputs, outputs = sum(record.prompt_tokens or 0 for record in good), sum(record.output for record in good)
    return Costs(
        whole=whole,
        per_1k_input=_per(whole * share, inputs),
        per_1k_output=_per(whole * (1 - share), outputs),
        per_1k_tokens=_per(whole, inputs + outputs),
        per_request=whole / len(good) if good else None,
    )


def _per(money: float, tokens: int) -> float | None:
    return money / tokens * _PER_TOKENS if tokens else None
