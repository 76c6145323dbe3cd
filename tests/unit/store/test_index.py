from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from tierline.store import PAGE_BYTES, ObjectKey, Owner, Store
from tierline.store.index import KeyIndex, key_of, text_of

WORDS = st.text(alphabet="0123:kv/@\0", max_size=6) | st.text(max_size=6)
"""Short, and of few letters, so that one key's bucket and name often join to the same letters as another's."""
KEYS = st.builds(ObjectKey, WORDS, WORDS)


@given(key=KEYS)
def test_a_key_comes_back_from_its_text(key: ObjectKey) -> None:
    assert key_of(text_of(key)) == key


@given(one=KEYS, other=KEYS)
def test_two_keys_have_one_text_only_if_they_are_equal(one: ObjectKey, other: ObjectKey) -> None:
    assert (text_of(one) == text_of(other)) == (one == other)


@given(stored=st.sets(KEYS, max_size=20), asked=st.lists(KEYS, max_size=20), data=st.data())
def test_a_run_ends_before_the_first_key_that_is_not_there(
    stored: set[ObjectKey], asked: list[ObjectKey], data: st.DataObject
) -> None:
    index = KeyIndex()
    rows = {key: row for row, key in enumerate(stored)}
    for key, row in rows.items():
        index.add(key, row)
    if stored:
        asked = data.draw(st.lists(st.sampled_from(sorted(stored)), max_size=20)) + asked
    expected = []
    for key in asked:
        if key not in rows:
            break
        expected.append(rows[key])

    assert index.run(asked) == expected
    assert [index.get(key) for key in asked] == [rows.get(key) for key in asked]


def test_names_that_join_to_the_same_letters_are_different_objects(open_store: Callable[..., Store]) -> None:
    keys = [ObjectKey("", "1:ab"), ObjectKey("a", "b"), ObjectKey("ab", ""), ObjectKey("1:a", "b")]
    for stored in keys:
        store = open_store()
        slot = store.write(stored, PAGE_BYTES, Owner("engine", 1))
        store.commit(slot.id, Owner("engine", 1), checksum=7)

        for asked in keys:
            lease = store.open_lease("reader", 1)
            assert [leased.key for leased in store.extend_lease(lease, [asked])] == [asked] * (asked == stored)
            assert store.is_stored(asked) == (asked == stored)
        assert [listed.key for listed in store.list().objects] == [stored]
        store.delete(stored)
