"""How long a comparison takes: assumed before the first cell, then as much slower or faster as the cells so far."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tierline.bench.features.cells import Cell, Engines, starts

_SHARE_TO_COMPUTE = 0.4
"""Of the prompts' tokens, where something may be found; without prefix caching it is all of them."""


@dataclass(frozen=True)
class Assumed:
    """What one engine does, roughly.

    Parameters
    ----------
    start_s
        Until all engines of a stack serve.
    tokens_per_s
        Prompt tokens that all of them compute.
    cell_s
        A cell without its prompts: router, node stores, answers.
    """

    start_s: float
    tokens_per_s: float
    cell_s: float


ASSUMED = {
    # SmolLM2-135M in float32 on two cores of an AMD EPYC; any other machine is told apart by its first cell.
    "vllm": Assumed(start_s=60.0, tokens_per_s=330.0, cell_s=15.0),
    "simulated": Assumed(start_s=3.0, tokens_per_s=4000.0, cell_s=2.0),
}


@dataclass
class Estimate:
    """Seconds that cells take.

    Parameters
    ----------
    engine
        One of :data:`ASSUMED`.
    prompt_tokens
        Of the load on each cell.
    has_own_stacks
        Whether engines are started.
    """

    engine: str
    prompt_tokens: int
    has_own_stacks: bool
    _began: float = field(default_factory=time.monotonic)

    def before(self, cells: Sequence[Cell]) -> float:
        """Return what cells take on a machine like the one assumed."""
        assumed = ASSUMED[self.engine]
        shares = sum(1.0 if cell.engines is Engines.UNCACHED else _SHARE_TO_COMPUTE for cell in cells)
        started = starts(cells) * assumed.start_s if self.has_own_stacks else 0.0
        return started + len(cells) * assumed.cell_s + shares * self.prompt_tokens / assumed.tokens_per_s

    def left(self, done: Sequence[Cell], left: Sequence[Cell]) -> float:
        """Return what is left, when ``done`` have taken the time since this was made."""
        return self.before(left) * (time.monotonic() - self._began) / self.before(done)


def minutes(seconds: float) -> str:
    """Return a time as people say it.

    >>> minutes(40), minutes(61), minutes(700)
    ('1 minute', '2 minutes', '12 minutes')
    """
    whole = max(1, -int(-seconds // 60))
    return "1 minute" if whole == 1 else f"{whole} minutes"
