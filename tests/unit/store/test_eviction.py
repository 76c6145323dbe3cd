from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierline.store import ObjectKey
from tierline.store.eviction import POLICIES, AdaptiveReplacement, EvictionPolicy, LeastRecentlyUsed

CAPACITY = 8


def key(number: int) -> ObjectKey:
    return ObjectKey("kv", str(number))


class PublishedArc:
    """Figure 4 of the paper, line by line, for objects of one size; hits and misses only."""

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


def use(policy: EvictionPolicy[ObjectKey], used: ObjectKey) -> None:
    policy.hold_out(used)
    policy.put_back(used, was_used=True)


def hits_of(policy: EvictionPolicy[ObjectKey], requests: list[int], capacity: int) -> int:
    """Replay requests for objects of one page as the store would."""
    cached: set[ObjectKey] = set()
    hits = 0
    for number in requests:
        if key(number) in cached:
            hits += 1
            use(policy, key(number))
            continue
        if len(cached) == capacity:
            victim = policy.victim()
            assert victim is not None
            cached.remove(victim)
        cached.add(key(number))
        policy.insert(key(number), 1)
    return hits


def zipf_with_scans(length: int, seed: int) -> list[int]:
    """A skewed load, with a scan of objects that never come back after every 50 requests."""
    state, requests, scanned = seed, [], 10_000
    for index in range(length):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        if index % 100 < 50:
            requests.append(int(400 ** ((state >> 11) / 2**53)))
        else:
            scanned += 1
            requests.append(scanned)
    return requests


def test_arc_hits_as_often_as_the_published_algorithm() -> None:
    requests = zipf_with_scans(20_000, seed=1)
    published = PublishedArc(64)

    expected = sum(published.request(number) for number in requests)

    assert hits_of(AdaptiveReplacement(64), requests, 64) == pytest.approx(expected, rel=0.02)


def test_arc_resists_a_scan_that_flushes_lru() -> None:
    requests = zipf_with_scans(20_000, seed=2)

    assert hits_of(AdaptiveReplacement(64), requests, 64) > 1.1 * hits_of(LeastRecentlyUsed(64), requests, 64)


@given(st.lists(st.integers(0, 20), max_size=200))
def test_lru_keeps_the_last_used(requests: list[int]) -> None:
    model: OrderedDict[int, None] = OrderedDict()
    expected = 0
    for number in requests:
        expected += number in model
        model[number] = None
        model.move_to_end(number)
        if len(model) > CAPACITY:
            model.popitem(last=False)

    assert hits_of(LeastRecentlyUsed(CAPACITY), requests, CAPACITY) == expected


@pytest.mark.parametrize("name", sorted(POLICIES))
@given(data=st.data())
def test_a_policy_chooses_only_what_is_listed_and_counts_its_pages(name: str, data: st.DataObject) -> None:
    policy: EvictionPolicy[ObjectKey] = POLICIES[name](CAPACITY)
    listed: dict[ObjectKey, int] = {}
    held_out: dict[ObjectKey, int] = {}
    for _ in range(data.draw(st.integers(0, 60))):
        match data.draw(st.sampled_from(["insert", "hold out", "put back", "remove", "peek", "victim"])):
            case "insert":
                new = key(data.draw(st.integers(0, 15)))
                if new not in listed and new not in held_out:
                    listed[new] = data.draw(st.integers(1, 4))
                    policy.insert(new, listed[new])
            case "hold out" if listed:
                chosen = data.draw(st.sampled_from(sorted(listed)))
                held_out[chosen] = listed.pop(chosen)
                policy.hold_out(chosen)
            case "put back" if held_out:
                chosen = data.draw(st.sampled_from(sorted(held_out)))
                listed[chosen] = held_out.pop(chosen)
                policy.put_back(chosen, was_used=data.draw(st.booleans()))
            case "remove" if listed or held_out:
                chosen = data.draw(st.sampled_from(sorted([*listed, *held_out])))
                (listed if chosen in listed else held_out).pop(chosen)
                policy.remove(chosen)
            case "peek":
                assert policy.peek() in (listed or {None})
            case "victim":
                announced = policy.peek()
                victim = policy.victim()
                assert victim == announced
                assert (victim is None) == (not listed)
                if victim is not None:
                    del listed[victim]
        assert policy.evictable_pages == sum(listed.values())


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 5)), max_size=300))
def test_arc_remembers_no_more_than_one_cache_of_ghosts_beside_the_cache(requests: list[tuple[int, int]]) -> None:
    policy = AdaptiveReplacement[ObjectKey](CAPACITY)
    cached: dict[int, int] = {}
    for number, pages in requests:
        while policy.evictable_pages + pages > CAPACITY:
            victim = policy.victim()
            assert victim is not None
            del cached[int(victim.name)]
        if number not in cached:
            cached[number] = pages
            policy.insert(key(number), pages)
        else:
            use(policy, key(number))

        assert policy.evictable_pages + policy.ghost_pages <= 2 * CAPACITY


def test_an_object_used_again_outlives_a_newer_one_used_once() -> None:
    policy = AdaptiveReplacement[ObjectKey](CAPACITY)
    policy.insert(key(1), 4)
    use(policy, key(1))
    policy.insert(key(2), 4)

    assert policy.victim() == key(2)


def test_an_object_whose_lease_was_no_use_keeps_its_standing() -> None:
    policy = AdaptiveReplacement[ObjectKey](CAPACITY)
    for number in (1, 2):
        policy.insert(key(number), 4)
    use(policy, key(2))
    for number in (2, 1):
        policy.hold_out(key(number))
        policy.put_back(key(number), was_used=False)

    assert policy.victim() == key(1)
