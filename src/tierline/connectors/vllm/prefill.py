"""How fast the engine computes prompts, by its own steps: what a step was given, and how long it took.

A step counts where most of it was prompts: one that mostly decodes is as long as its weights take to be read, however
few tokens of a prompt go with it. Its time ends when its outcome is there, and begins when it was planned or, where
another one was running still, with the end of that. So it holds also where the engine plans ahead.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tierline.loading import PrefillCost, PrefillRate

LEAST_TOKENS = 128
"""Steps with fewer tokens of prompts say more about what a step costs than about what a token does."""
PROMPT_SHARE = 0.75
_MOST_RUNNING = 16


@dataclass(frozen=True, slots=True)
class _Step:
    planned_at: float
    tokens: int
    attended: int


class PrefillMeter:
    """Watches the steps; the unit of its cost is a token.

    Parameters
    ----------
    clock
        Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._rate = PrefillRate()
        self._numbers = itertools.count(1)
        self._running: dict[int, _Step] = {}
        self._last_end = 0.0

    def planned(self, prompts: Iterable[tuple[int, int]], scheduled_tokens: int) -> int:
        """Take note of a step.

        Parameters
        ----------
        prompts
            Of each prompt that the step computes tokens of: how many, and how many are before them.
        scheduled_tokens
            All tokens of the step.

        Returns
        -------
        int
            The number by which its end is to be told; 0: it need not be.
        """
        tokens = attended = 0
        for new, before in prompts:
            tokens += new
            attended += new * before + new * (new - 1) // 2
        if tokens < max(LEAST_TOKENS, PROMPT_SHARE * scheduled_tokens):
            return 0
        number = next(self._numbers)
        self._running[number] = _Step(self._clock(), tokens, attended)
        if len(self._running) > _MOST_RUNNING:  # of some the engine said nothing
            del self._running[next(iter(self._running))]
        return number

    def ended(self, numbers: Iterable[int]) -> None:
        """Take note that a step's outcome is there; ``numbers`` has its own, if it has one."""
        now = self._clock()
        for number in numbers:
            if (step := self._running.pop(number, None)) is not None:
                self._rate.observe(step.tokens, step.attended, now - max(step.planned_at, self._last_end))
        self._last_end = now

    def cost(self) -> PrefillCost | None:
        """Return what a token takes; ``None`` before a prompt was computed."""
        return self._rate.cost()
