"""One direction of a link in virtual time: it carries one transfer after the other, each at the whole bandwidth."""


class Link:
    """One direction; the other one is a link of its own, for all that is modelled is full duplex.

    Invariant: transfers end in the order in which they were asked for, and in no time are more bytes carried than the
    bandwidth allows.

    Parameters
    ----------
    bytes_per_s
        Infinite: what passes takes no time.

    Attributes
    ----------
    free_at_s
        When all that was asked for so far has been carried.
    """

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self.free_at_s = 0.0

    def carry(self, size_bytes: int, now_s: float) -> float:
        """Return when so many bytes are through that are asked for now."""
        self.free_at_s = self.would_end_s(size_bytes, now_s)
        return self.free_at_s

    def would_end_s(self, size_bytes: int, now_s: float) -> float:
        """Return when so many bytes would be through if they were asked for now."""
        return max(self.free_at_s, now_s) + size_bytes / self.bytes_per_s
