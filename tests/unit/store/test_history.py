import pytest

from tierline.store import ObjectKey
from tierline.store.history import MOST_FRAMES, ROW_BYTES, Fate, Frames, GhostLog


def key(number: int) -> ObjectKey:
    return ObjectKey("kv", f"{number:064x}@f.l.c1.tp0-1.pp0-1.g0")


def test_the_latest_fate_of_a_key_is_remembered() -> None:
    log = GhostLog(100 * ROW_BYTES)
    log.note(key(1), Fate.EVICTED, 10.0, 5.0, 2.5)
    log.note(key(2), Fate.DELETED, 11.0)
    log.note(key(1), Fate.EXPIRED, 12.0, 7.0, 0.5)

    assert log.find(key(1)) == (Fate.EXPIRED, 12.0, 7.0, 0.5)
    assert log.find(key(3)) is None
    assert len(log) == 2


def test_a_full_log_forgets_the_oldest_first_and_says_how_far_back_it_reaches() -> None:
    log = GhostLog(80 * ROW_BYTES)
    for number in range(10_000):
        log.note(key(number), Fate.EVICTED, float(number))

    assert len(log) == 80
    assert log.overwritten_until is not None
    assert all(log.find(key(number)) for number in range(int(log.overwritten_until) + 1, 10_000))
    assert log.overwritten_until > 9_700


@pytest.mark.parametrize("size", [0, 7 * ROW_BYTES])
def test_a_log_without_memory_remembers_nothing(size: int) -> None:
    log = GhostLog(size)
    log.note(key(1), Fate.EVICTED, 1.0)

    assert log.find(key(1)) is None
    assert len(log) == 0


def test_frames_are_bounded_and_the_latest_are_kept() -> None:
    frames = Frames()
    for number in range(2 * MOST_FRAMES):
        frames.note(ObjectKey("kv", f"model@00010000@0@1@tenant-{number}"))
    frames.note(ObjectKey("kv", "no frame"))

    others = list(frames.others(ObjectKey("kv", "model@00010000@0@ff@me")))

    assert len(others) == MOST_FRAMES
    assert others[0] == ObjectKey("kv", f"model@00010000@0@ff@tenant-{2 * MOST_FRAMES - 1}")
    assert list(frames.others(ObjectKey("kv", "no frame"))) == []
