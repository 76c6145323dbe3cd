"""All metrics of all programs, by who exports them; ``docs/metrics.md`` is made from this."""

from types import MappingProxyType

from tierline.metrics.collector import COLLECTOR
from tierline.metrics.connector import CONNECTOR
from tierline.metrics.controller import CONTROLLER
from tierline.metrics.definitions import Definition
from tierline.metrics.node import NODE
from tierline.metrics.operator import OPERATOR
from tierline.metrics.proxy import PROXY
from tierline.metrics.router import ROUTER

PROGRAMS = MappingProxyType(
    {
        "tierline node": NODE,
        "tierline router": ROUTER,
        "tierline controller": CONTROLLER,
        "tierline proxy": PROXY,
        "tierline collector": COLLECTOR,
        "tierline operator": OPERATOR,
        "the vLLM connector": CONNECTOR,
    }
)
"""By the command that exports them; the connector's are on vLLM's page."""
CATALOGUE = MappingProxyType({each.name: each for program in PROGRAMS.values() for each in program})
"""By name."""
assert len(CATALOGUE) == sum(map(len, PROGRAMS.values())), "a name is defined twice"


def definition_of(sample: str) -> Definition | None:
    """Return which metric a sample is of, by the sample's name; ``None``: none of ours."""
    return _BY_SAMPLE.get(sample)


_BY_SAMPLE = {name: each for each in CATALOGUE.values() for name in each.series}
