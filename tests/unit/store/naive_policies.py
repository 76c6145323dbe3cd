"""The eviction policies as their papers state them, in lists and for objects of one size: slow, and plain to read.

What is leased is held out by the rules that the policies' own modules state.
"""

from abc import ABC, abstractmethod
from collections import OrderedDict


class NaivePolicy(ABC):
    """The interface of the policies, less the sizes."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity

    @abstractmethod
    def insert(self, key: int) -> None: ...

    @abstractmethod
    def hold_out(self, key: int) -> None: ...

    @abstractmethod
    def use(self, key: int) -> None: ...

    @abstractmethod
    def put_back(self, key: int) -> None: ...

    @abstractmethod
    def remove(self, key: int) -> None: ...

    @abstractmethod
    def victim(self) -> int | None: ...


class NaiveLru(NaivePolicy):
    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.listed: list[int] = []

    def insert(self, key: int) -> None:
        self.listed.append(key)

    def hold_out(self, key: int) -> None:
        self.listed.remove(key)

    def use(self, key: int) -> None: ...

    def put_back(self, key: int) -> None:
        self.listed.append(key)

    def remove(self, key: int) -> None:
        if key in self.listed:
            self.listed.remove(key)

    def victim(self) -> int | None:
        return self.listed.pop(0) if self.listed else None


class NaiveFifo(NaivePolicy):
    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.line: list[int] = []
        self.held: set[int] = set()
        self.passed: set[int] = set()

    def insert(self, key: int) -> None:
        self.line.append(key)

    def hold_out(self, key: int) -> None:
        self.held.add(key)

    def use(self, key: int) -> None: ...

    def put_back(self, key: int) -> None:
        if key in self.passed:
            self.line.remove(key)
            overdue = [other for other in self.line if other in self.passed - self.held]
            self.line = [*overdue, key, *(other for other in self.line if other not in overdue)]
        self.held.remove(key)

    def remove(self, key: int) -> None:
        self.line.remove(key)
        self.held.discard(key)
        self.passed.discard(key)

    def first(self) -> int:
        """Whose turn it is; there must be one."""
        for key in self.line:
            if key not in self.held:
                return key
            self.passed.add(key)
        raise AssertionError("nothing is listed")

    def __len__(self) -> int:
        return len(self.line) - len(self.held)

    def victim(self) -> int | None:
        if not len(self):
            return None
        key = self.first()
        self.remove(key)
        return key


class NaiveLfu(NaivePolicy):
    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.time = 0
        self.uses: dict[int, int] = {}
        self.listed_at: dict[int, int] = {}

    def _list(self, key: int) -> None:
        self.time += 1
        self.listed_at[key] = self.time

    def insert(self, key: int) -> None:
        self.uses[key] = 1
        self._list(key)

    def hold_out(self, key: int) -> None:
        del self.listed_at[key]

    def use(self, key: int) -> None:
        self.uses[key] += 1

    def put_back(self, key: int) -> None:
        self._list(key)

    def remove(self, key: int) -> None:
        del self.uses[key]
        self.listed_at.pop(key, None)

    def victim(self) -> int | None:
        if not self.listed_at:
            return None
        key = min(self.listed_at, key=lambda key: (self.uses[key], self.listed_at[key]))
        self.remove(key)
        return key


class NaiveS3Fifo(NaivePolicy):
    """Algorithm 1 of the paper; a call of EVICT ends with the first object that goes."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.small = NaiveFifo(capacity)
        self.main = NaiveFifo(capacity)
        self.ghosts: list[int] = []
        self.uses: dict[int, int] = {}

    def insert(self, key: int) -> None:
        self.uses[key] = 0
        if key in self.ghosts:
            self.ghosts.remove(key)
            self.main.insert(key)
        else:
            self.small.insert(key)

    def _queue_of(self, key: int) -> NaiveFifo:
        return self.small if key in self.small.line else self.main

    def hold_out(self, key: int) -> None:
        self._queue_of(key).hold_out(key)

    def use(self, key: int) -> None:
        self.uses[key] = min(self.uses[key] + 1, 3)

    def put_back(self, key: int) -> None:
        self._queue_of(key).put_back(key)

    def remove(self, key: int) -> None:
        self._queue_of(key).remove(key)

    def victim(self) -> int | None:
        while len(self.small) or len(self.main):
            from_small = len(self.small) and (len(self.small) >= 0.1 * self.capacity or not len(self.main))
            key = self.evict_small() if from_small else self.evict_main()
            if key is not None:
                return key
        return None

    def evict_small(self) -> int | None:
        key = self.small.first()
        self.small.remove(key)
        if self.uses[key] > 1:
            self.uses[key] = 0
            self.main.insert(key)
            return None
        self.ghosts.append(key)
        if len(self.ghosts) > 0.9 * self.capacity:
            self.ghosts.pop(0)
        return key

    def evict_main(self) -> int | None:
        key = self.main.first()
        self.main.remove(key)
        if self.uses[key]:
            self.uses[key] -= 1
            self.main.insert(key)
            return None
        return key


class PublishedArc:
    """Figure 4 of the paper, line by line; hits and misses only."""

    def __init__(self, capacity: int) -> None:
        self.c, self.p = capacity, 0.0
        self.t1: OrderedDict[int, None] = OrderedDict()
        self.t2: OrderedDict[int, None] = OrderedDict()
        self.b1: OrderedDict[int, None] = OrderedDict()
        self.b2: OrderedDict[int, None] = OrderedDict()

    def request(self, x: int) -> bool:
        if x in self.t1 or x in self.t2:
            (self.t1 if x in self.t1 else self.t2).pop(x)
            self.t2[x] = None
            return True
        if x in self.b1:
            self.p = min(self.p + max(1.0, len(self.b2) / len(self.b1)), self.c)
            self.replace(is_frequent_ghost=False)
            del self.b1[x]
            self.t2[x] = None
        elif x in self.b2:
            self.p = max(self.p - max(1.0, len(self.b1) / len(self.b2)), 0)
            self.replace(is_frequent_ghost=True)
            del self.b2[x]
            self.t2[x] = None
        else:
            if len(self.t1) + len(self.b1) == self.c:
                if len(self.t1) < self.c:
                    self.b1.popitem(last=False)
                    self.replace(is_frequent_ghost=False)
                else:
                    self.t1.popitem(last=False)
            elif (total := len(self.t1) + len(self.t2) + len(self.b1) + len(self.b2)) >= self.c:
                if total == 2 * self.c:
                    self.b2.popitem(last=False)
                self.replace(is_frequent_ghost=False)
            self.t1[x] = None
        return False

    def replace(self, *, is_frequent_ghost: bool) -> None:
        if self.t1 and (len(self.t1) > self.p or (is_frequent_ghost and len(self.t1) == self.p)):
            self.b1[self.t1.popitem(last=False)[0]] = None
        else:
            self.b2[self.t2.popitem(last=False)[0]] = None


NAIVE_POLICIES: dict[str, type[NaivePolicy]] = {
    "fifo": NaiveFifo,
    "lru": NaiveLru,
    "lfu": NaiveLfu,
    "s3fifo": NaiveS3Fifo,
}
