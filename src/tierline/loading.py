"""Load or recompute: the one rule by which connector, node and router say which blocks are worth loading.

A run of blocks is worth loading where ``bytes / bandwidth + latency < factor × prefill time``, the prefill time being
that of those blocks behind what is before them. Rules: arithmetic on what was observed, and the clock passed in; **what
is not known is tried**, for that is how it is learnt; and an observation is believed for :data:`BELIEVED_S`, for a tier
that was too slow to be asked is observed by nobody, and would be too slow for ever.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

BELIEVED_S = 10.0
"""After this long without an observation a speed counts as not known. So one stall costs a tier ten seconds, and a slow
one costs a try in ten seconds, which is bounded by the time that its caller has."""
MEMORY = 0.9
"""What an observation's weight is multiplied with at each further one: some ten of them make the picture."""
CUTS = 16
"""A run is cut at one of so many places, evenly spaced: what is loaded beyond the best one is a sixteenth at most."""
_SINGULAR = 1e-9


class PrefillCost(NamedTuple):
    """What computing a prompt takes: block ``n`` (from 0) takes ``first_s + n * growth_s``.

    The unit is the caller's: a stored block between connector and node, a token inside an engine.

    Parameters
    ----------
    first_s
        Seconds of a block with nothing before it.
    growth_s
        How much longer each block takes than the one before it, since attention reads all of them.
    """

    first_s: float
    growth_s: float = 0.0

    def seconds(self, start: int, stop: int) -> float:
        """Return what blocks ``start`` to ``stop`` (exclusive) take where all before ``start`` are there."""
        return self.first_s * (stop - start) + self.growth_s * (stop * (stop - 1) - start * (start - 1)) / 2

    def of_blocks(self, size: int) -> "PrefillCost":
        """Return the cost in blocks of ``size`` of the present ones."""
        return PrefillCost(self.seconds(0, size), self.growth_s * size * size)


class Decision(NamedTuple):
    """What was decided about one run of blocks, and why.

    Parameters
    ----------
    blocks
        How many leading blocks to load.
    load_s, prefill_s
        What loading and computing all of the run would take; ``None`` where it is not known.
    """

    blocks: int
    load_s: float | None
    prefill_s: float | None

    @property
    def label(self) -> Literal["load", "recompute", "unknown"]:
        """The value of label ``decision``: ``unknown`` is loaded to find out."""
        if self.load_s is None or self.prefill_s is None:
            return "unknown"
        return "load" if self.blocks else "recompute"


def decide(
    blocks: int,
    load_seconds: Callable[[int], float | None],
    prefill: PrefillCost | None,
    *,
    start: int = 0,
    factor: float = 1.0,
) -> Decision:
    """Return how many of a run of blocks to load: as many as save the most time, and of those the longest run.

    Parameters
    ----------
    blocks
        Length of the run.
    load_seconds
        What loading so many leading blocks of it takes; ``None`` where that is not known.
    prefill
        What computing takes; ``None`` where that is not known.
    start
        Blocks before the run, which are there already.
    factor
        What a second of computing is worth in seconds of loading: below 1 a load must win by more.

    Examples
    --------
    >>> decide(8, lambda count: 0.01 + count * 0.1, PrefillCost(0.2)).blocks
    8
    >>> decide(8, lambda count: 0.01 + count * 0.1, PrefillCost(0.05)).label
    'recompute'
    """
    if not blocks:
        return Decision(0, 0.0, 0.0)
    load_s = load_seconds(blocks)
    prefill_s = None if prefill is None else prefill.seconds(start, start + blocks)
    if load_s is None or prefill is None or prefill_s is None:
        return Decision(blocks, load_s, prefill_s)
    best, saved_s = 0, 0.0
    if factor * prefill_s > load_s:
        best, saved_s = blocks, factor * prefill_s - load_s
    for cut in range(CUTS - 1, 0, -1):
        count = -(-blocks * cut // CUTS)
        taken_s = load_seconds(count)
        gain_s = 0.0 if taken_s is None else factor * prefill.seconds(start, start + count) - taken_s
        if gain_s > saved_s:
            best, saved_s = count, gain_s
    return Decision(best, load_s, prefill_s)


class Speed:
    """How fast bytes come from one place, as observed: ``latency + bytes / bandwidth``.

    Parameters
    ----------
    clock
        Monotonic seconds.
    """

    __slots__ = ("_clock", "_line", "_observed_at")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._line = _Line()
        self._observed_at: float | None = None

    def observe(self, size_bytes: int, seconds: float) -> None:
        """Take note that one fetch of so many bytes, from the question to the last byte, took so long."""
        if size_bytes <= 0 or seconds <= 0:
            return
        now = self._clock()
        if not self._is_believed(now):
            self._line = _Line()
        self._observed_at = now
        self._line.add(size_bytes, 1.0, seconds)

    def seconds(self, size_bytes: int) -> float | None:
        """Return how long fetching so many bytes takes; ``None`` where nothing was observed lately."""
        if not self._is_believed(self._clock()):
            return None
        latency_s, byte_s = self._line.solve()
        return latency_s + size_bytes * byte_s

    @property
    def bytes_per_s(self) -> float | None:
        """Bytes a second of what was fetched, latency included; ``None`` where nothing was observed lately."""
        return 1 / self._line.mean() if self._is_believed(self._clock()) else None

    def _is_believed(self, now: float) -> bool:
        return self._observed_at is not None and now - self._observed_at <= BELIEVED_S


class PrefillRate:
    """How fast an engine computes prompts, as observed; the unit is a token. What it computed at last is believed."""

    __slots__ = ("_line",)

    def __init__(self) -> None:
        self._line: _Line | None = None

    def observe(self, tokens: int, attended: int, seconds: float) -> None:
        """Take note of one step.

        Parameters
        ----------
        tokens
            Tokens of prompts that it computed.
        attended
            Tokens before each of them, summed.
        seconds
            What it took.
        """
        if tokens <= 0 or seconds <= 0:
            return
        if self._line is None:
            self._line = _Line()
        self._line.add(tokens, float(attended), seconds)

    def cost(self) -> PrefillCost | None:
        """Return what a token takes; ``None`` before anything was observed."""
        if self._line is None:
            return None
        growth_s, first_s = self._line.solve()
        return PrefillCost(first_s, growth_s)


class _Line:
    """``y = a·z + b·x``, neither of them negative, by least squares over what was observed, the last counting most.

    An observation weighs ``1 / x``, so that what the line says of all of them together is what they took together.
    """

    __slots__ = ("_x", "_y", "_z", "_zy", "_zz")

    def __init__(self) -> None:
        self._x = self._y = self._z = self._zz = self._zy = 0.0

    def add(self, x: float, z: float, y: float) -> None:
        self._x = MEMORY * self._x + x
        self._z = MEMORY * self._z + z
        self._y = MEMORY * self._y + y
        self._zz = MEMORY * self._zz + z * z / x
        self._zy = MEMORY * self._zy + z * y / x

    def solve(self) -> tuple[float, float]:
        """Return ``a`` and ``b``."""
        determinant = self._x * self._zz - self._z * self._z
        if determinant <= _SINGULAR * self._x * self._zz:  # all observations alike: nothing tells the two apart
            return 0.0, self.mean()
        a = (self._x * self._zy - self._z * self._y) / determinant
        b = (self._zz * self._y - self._z * self._zy) / determinant
        if a <= 0:
            return 0.0, self.mean()
        if b <= 0:
            return self._zy / self._zz, 0.0
        return a, b

    def mean(self) -> float:
        return self._y / self._x
