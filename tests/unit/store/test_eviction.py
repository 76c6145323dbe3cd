import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.store.naive_policies import NAIVE_POLICIES, PublishedArc

from tierline.store.eviction import (
    POLICIES,
    AdaptiveReplacement,
    EvictionPolicy,
    FirstInFirstOut,
    LeastFrequentlyUsed,
    LeastRecentlyUsed,
    PolicyName,
    SmallMainGhost,
)

CAPACITY = 8
ACTIONS = st.sampled_from(["use", "put back", "put back", "remove"])


def use(policy: EvictionPolicy[int], used: int) -> None:
    policy.hold_out(used)
    policy.use(used)
    policy.put_back(used)


def hits_of(policy: EvictionPolicy[int], requests: list[int], capacity: int) -> int:
    """Replay requests for objects of one page as the store would."""
    cached: set[int] = set()
    hits = 0
    for number in requests:
        if number in cached:
            hits += 1
            use(policy, number)
            continue
        if len(cached) == capacity:
            victim = policy.victim()
            assert victim is not None
            cached.remove(victim)
        cached.add(number)
        policy.insert(number, 1)
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


def test_arc_hits_as_often_as_the_published_algorithm_but_for_what_its_departures_cost_in_a_scan() -> None:
    requests = zipf_with_scans(20_000, seed=1)
    published = PublishedArc(64)

    expected = sum(published.request(number) for number in requests)

    assert hits_of(AdaptiveReplacement(64), requests, 64) == pytest.approx(expected, rel=0.05)


def test_arc_resists_a_scan_that_flushes_lru() -> None:
    requests = zipf_with_scans(20_000, seed=2)

    assert hits_of(AdaptiveReplacement(64), requests, 64) > 1.1 * hits_of(LeastRecentlyUsed(64), requests, 64)


@pytest.mark.parametrize("name", sorted(NAIVE_POLICIES))
@given(data=st.data())
@settings(max_examples=100)
def test_objects_of_one_size_go_in_the_order_of_the_published_algorithm(name: PolicyName, data: st.DataObject) -> None:
    policy: EvictionPolicy[int] = POLICIES[name](CAPACITY)
    published = NAIVE_POLICIES[name](CAPACITY)
    cached: set[int] = set()
    held_out: set[int] = set()
    for number, action in data.draw(st.lists(st.tuples(st.integers(0, 11), ACTIONS), max_size=120)):
        if number not in cached:
            if len(cached) == CAPACITY:
                victim = policy.victim()
                assert victim == published.victim()
                if victim is None:
                    continue
                cached.remove(victim)
            cached.add(number)
            policy.insert(number, 1)
            published.insert(number)
        elif action == "remove":
            cached.remove(number)
            held_out.discard(number)
            policy.remove(number)
            published.remove(number)
        elif number in held_out:
            if action == "use":
                policy.use(number)
                published.use(number)
            else:
                held_out.remove(number)
                policy.put_back(number)
                published.put_back(number)
        else:
            held_out.add(number)
            policy.hold_out(number)
            published.hold_out(number)


@pytest.mark.parametrize("name", sorted(NAIVE_POLICIES))
def test_over_a_long_load_objects_go_in_the_order_of_the_published_algorithm(name: PolicyName) -> None:
    policy: EvictionPolicy[int] = POLICIES[name](50)
    published = NAIVE_POLICIES[name](50)
    cached: set[int] = set()
    for number in zipf_with_scans(5_000, seed=3):
        if number in cached:
            use(policy, number)
            published.hold_out(number)
            published.use(number)
            published.put_back(number)
            continue
        if len(cached) == 50:
            victim = policy.victim()
            assert victim == published.victim()
            assert victim is not None
            cached.remove(victim)
        cached.add(number)
        policy.insert(number, 1)
        published.insert(number)


class CountedKey:
    """A key that counts how often any of its kind is looked up."""

    lookups = 0

    def __hash__(self) -> int:
        CountedKey.lookups += 1
        return id(self)


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_what_an_operation_costs_does_not_grow_with_what_is_listed_or_held(name: PolicyName) -> None:
    policy: EvictionPolicy[CountedKey] = POLICIES[name](CAPACITY)
    lookups_each = []
    for count in (100, 5_000):
        CountedKey.lookups = 0
        keys = [CountedKey() for _ in range(count)]
        for key in keys:
            policy.insert(key, 1)
        for key in keys[: count // 2]:
            policy.hold_out(key)
        for _ in range(count // 4):
            policy.peek()
            assert policy.victim() is not None
        for key in keys[: count // 2]:
            policy.use(key)
            policy.put_back(key)
        while policy.victim() is not None:
            policy.peek()
        lookups_each.append(CountedKey.lookups / count)

    assert lookups_each[1] == pytest.approx(lookups_each[0], rel=0.1)


def test_a_lease_does_not_change_when_fifo_lets_an_object_go() -> None:
    policy = FirstInFirstOut[int](CAPACITY)
    for number in (1, 2, 3):
        policy.insert(number, 1)
    use(policy, 1)

    assert [policy.victim() for _ in range(3)] == [1, 2, 3]


def test_an_object_that_was_leased_when_its_turn_came_goes_next_once_it_is_free() -> None:
    policy = FirstInFirstOut[int](CAPACITY)
    for number in (1, 2, 3):
        policy.insert(number, 1)
    policy.hold_out(1)
    first = policy.victim()
    policy.put_back(1)

    assert [first, policy.victim(), policy.victim()] == [2, 1, 3]


def test_of_objects_used_equally_often_lfu_lets_the_least_recently_used_go() -> None:
    policy = LeastFrequentlyUsed[int](CAPACITY)
    for number in (1, 2, 3):
        policy.insert(number, 1)
    for number in (1, 2, 3, 2, 1):
        use(policy, number)

    assert [policy.victim() for _ in range(3)] == [3, 2, 1]


def test_s3fifo_resists_a_scan_that_flushes_lru() -> None:
    requests = zipf_with_scans(20_000, seed=2)

    assert hits_of(SmallMainGhost(64), requests, 64) > 1.1 * hits_of(LeastRecentlyUsed(64), requests, 64)


@given(st.lists(st.integers(0, 40), max_size=400))
def test_s3fifo_remembers_no_more_ghosts_than_its_main_queue_holds(requests: list[int]) -> None:
    policy = SmallMainGhost[int](20)
    hits_of(policy, requests, 20)

    assert policy.ghost_pages <= 18


@pytest.mark.parametrize("name", sorted(POLICIES))
@given(data=st.data())
def test_a_policy_chooses_only_what_is_listed_and_counts_its_pages(name: PolicyName, data: st.DataObject) -> None:
    policy: EvictionPolicy[int] = POLICIES[name](CAPACITY)
    listed: dict[int, int] = {}
    held_out: dict[int, int] = {}
    for _ in range(data.draw(st.integers(0, 60))):
        match data.draw(st.sampled_from(["insert", "hold out", "use", "put back", "remove", "peek", "victim"])):
            case "insert":
                new = data.draw(st.integers(0, 15))
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
                policy.put_back(chosen)
            case "use" if held_out:
                policy.use(data.draw(st.sampled_from(sorted(held_out))))
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
def test_arc_remembers_no_more_than_one_cache_of_ghosts_for_each_of_its_lists(requests: list[tuple[int, int]]) -> None:
    policy = AdaptiveReplacement[int](CAPACITY)
    cached: dict[int, int] = {}
    for number, pages in requests:
        while policy.evictable_pages + pages > CAPACITY:
            victim = policy.victim()
            assert victim is not None
            del cached[victim]
        if number not in cached:
            cached[number] = pages
            policy.insert(number, pages)
        else:
            use(policy, number)

        assert policy.ghost_pages <= 2 * CAPACITY


def test_an_object_used_again_outlives_a_newer_one_used_once() -> None:
    policy = AdaptiveReplacement[int](CAPACITY)
    policy.insert(1, 4)
    use(policy, 1)
    policy.insert(2, 4)

    assert policy.victim() == 2


def test_a_new_prefix_does_not_evict_its_own_blocks_from_an_arc_full_of_used_ones() -> None:
    policy = AdaptiveReplacement[int](100)
    for number in range(100):
        policy.insert(number, 1)
        use(policy, number)

    victims = []
    for number in range(1000, 1010):
        victims.append(policy.victim())
        policy.insert(number, 1)

    assert victims == list(range(10))


def test_an_object_whose_lease_was_no_use_keeps_its_standing() -> None:
    policy = AdaptiveReplacement[int](CAPACITY)
    for number in (1, 2):
        policy.insert(number, 4)
    use(policy, 2)
    for number in (2, 1):
        policy.hold_out(number)
        policy.put_back(number)

    assert policy.victim() == 1


@pytest.mark.parametrize("name", sorted(POLICIES))
@given(data=st.data())
def test_many_at_once_are_as_one_after_the_other(name: PolicyName, data: st.DataObject) -> None:
    at_once: EvictionPolicy[int] = POLICIES[name](CAPACITY)
    one_by_one: EvictionPolicy[int] = POLICIES[name](CAPACITY)
    listed = set(range(CAPACITY))
    for number in listed:
        at_once.insert(number, 1 + number % 3)
        one_by_one.insert(number, 1 + number % 3)
    for _ in range(data.draw(st.integers(0, 6))):
        held = data.draw(st.lists(st.sampled_from(sorted(listed)), unique=True))
        used = [number for number in held if data.draw(st.booleans())]
        at_once.hold_out_all(held)
        at_once.use_all(used)
        for number in held:
            one_by_one.hold_out(number)
        for number in used:
            one_by_one.use(number)
        assert at_once.evictable_pages == one_by_one.evictable_pages
        for number in held:
            at_once.put_back(number)
            one_by_one.put_back(number)

    assert at_once.evictable_pages == one_by_one.evictable_pages
    assert [at_once.victim() for _ in listed] == [one_by_one.victim() for _ in listed]
