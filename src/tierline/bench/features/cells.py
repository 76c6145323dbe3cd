"""The cells that are compared: which engines each needs, what is below them, and how requests are routed.

The baseline has neither feature. Routing stands alone on engines with their own prefix cache, the tiers stand alone
behind round robin, and one cell has both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from tierline.errors import ConfigurationError

ROUND_ROBIN = "roundrobin"


class Engines(StrEnum):
    """How the engines are started; to change it they must be started again."""

    UNCACHED = "prefix caching off"
    PLAIN = "prefix caching on"
    JOINED = "prefix caching on, each joined to a node store"


class Below(StrEnum):
    """What the node stores have below their own memory."""

    NOTHING = ""
    TIEREDSTORAGE = "tieredstorage"
    REDIS = "redis"


@dataclass(frozen=True)
class Cell:
    """One setting of the features.

    Parameters
    ----------
    name
        On the command line and of its file.
    title
        In tables and charts.
    """

    name: str
    title: str
    engines: Engines
    strategy: str = ROUND_ROBIN
    below: Below = Below.NOTHING


OFF = Cell("off", "baseline, prefix caching off", Engines.UNCACHED)
PREFIX_CACHING = Cell("prefix-caching", "baseline, prefix caching on", Engines.PLAIN)
BASELINES = (OFF, PREFIX_CACHING)

CELLS = (
    *BASELINES,
    Cell("session", "routing: session", Engines.PLAIN, "session"),
    Cell("prefixaware", "routing: prefixaware", Engines.PLAIN, "prefixaware"),
    Cell("kvaware", "routing: kvaware", Engines.PLAIN, "kvaware"),
    Cell("l1", "cache: L1", Engines.JOINED),
    Cell("l1-redis", "cache: L1 + redis", Engines.JOINED, below=Below.REDIS),
    Cell("l1-tieredstorage", "cache: L1 + tieredstorage", Engines.JOINED, below=Below.TIEREDSTORAGE),
    Cell("both", "both: prefixaware, L1 + tieredstorage", Engines.JOINED, "prefixaware", Below.TIEREDSTORAGE),
)


def chosen(text: str) -> list[Cell]:
    """Return the cells that a list with commas names, in the order in which they are measured; all for none.

    Raises
    ------
    ConfigurationError
        When there is no cell of that name.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    known = {cell.name: cell for cell in CELLS}
    for name in names:
        if name not in known:
            raise ConfigurationError("--cells", name, f"{', '.join(known)}, with commas between them")
    return [cell for cell in CELLS if not names or cell.name in names]


def starts(cells: Sequence[Cell]) -> int:
    """Return how often engines must be started for these cells."""
    return len({cell.engines for cell in cells})
