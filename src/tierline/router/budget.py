"""A budget for what costs endpoints twice: each request earns a part of one more attempt, up to a reserve of them."""


class Budget:
    """Keeps further attempts from multiplying an overload.

    Parameters
    ----------
    earned
        By each request, in attempts.
    reserve
        What can be saved up, and is there at the start.
    """

    def __init__(self, *, earned: float, reserve: float) -> None:
        self._earned = earned
        self._reserve = reserve
        self._saved = reserve

    def earn(self) -> None:
        """A request came in."""
        if self._saved < self._reserve:
            self._saved += self._earned

    def spend(self) -> bool:
        """Return whether one more attempt is paid for, and pay for it."""
        if self._saved < 1.0:
            return False
        self._saved -= 1.0
        return True
