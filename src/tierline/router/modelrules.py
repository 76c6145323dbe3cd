"""What is configured for one model beside the others: how its endpoints are chosen, and the names that mean it."""

import json
import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from tierline.configuration import ByteSize
from tierline.router.strategies.names import canonical_name

StrategyName = Annotated[str, AfterValidator(canonical_name)]
_PAIR = re.compile(r"(?P<name>[^=]+)=(?P<value>.+)")


class ModelRule(BaseModel):
    """How endpoints are chosen for the requests of one model and its adapters.

    Parameters
    ----------
    strategy
        Name of the strategy.
    index_bytes
        Memory for what it remembers of prompts; ``None``: as much as the router's own strategy has.
    ab_strategy, ab_share
        Another strategy, and the share of the requests that it chooses for.
    affinity
        Whether the strategy may look at caches and sessions from the start.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    strategy: StrategyName
    index_bytes: ByteSize | None = Field(default=None, ge=64 * 1024)
    ab_strategy: StrategyName | None = None
    ab_share: float = Field(default=0.0, ge=0, le=1, validate_default=True)
    affinity: bool = True

    @field_validator("ab_share")
    @classmethod
    def _belongs_to_a_strategy(cls, share: float, info: ValidationInfo) -> float:
        return require_trial(info.data.get("ab_strategy"), share)


def require_trial(strategy: str | None, share: float) -> float:
    """Return a share of the requests; raises ``ValueError`` where it and its strategy do not come together."""
    if strategy is None and share:
        raise ValueError("0 without ab_strategy")
    if strategy is not None and not share:
        raise ValueError("a share above 0, up to 1, for ab_strategy is set")
    return share


def parse_rules(value: object) -> object:
    """Return rules by model, of a table, or of entries ``MODEL=STRATEGY``.

    Raises
    ------
    ValueError
        It is text that is neither such entries nor a table in JSON.
    """
    if isinstance(value, str):
        if value.lstrip().startswith("{"):
            try:
                return json.loads(value)
            except ValueError:
                raise ValueError("MODEL=STRATEGY, or a table in JSON") from None
        value = [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, list | tuple):
        return {model: {"strategy": strategy} for model, strategy in parse_pairs(value, "MODEL=STRATEGY").items()}
    return value


def parse_pairs(entries: "list[str] | tuple[str, ...]", form: str) -> dict[str, str]:
    """Return entries ``NAME=VALUE`` by their names; raises ``ValueError`` for others, and for a name given twice."""
    found: dict[str, str] = {}
    for entry in entries:
        pair = _PAIR.fullmatch(str(entry))
        if pair is None:
            raise ValueError(form)
        if pair["name"] in found:
            raise ValueError(f"{form}, each name once")
        found[pair["name"]] = pair["value"]
    return found
