"""Bodies for operators: what one version writes another reads."""

import msgspec

from tierline.wire.admin import Explanation, NamespaceFigures, ObjectPage, StoredObject


def test_an_object_travels_as_the_documented_fields() -> None:
    stored = StoredObject(
        bucket="b",
        name="n",
        size=3,
        checksum=f"{7:016x}",
        fragments=1,
        leases=0,
        is_verified=True,
        age_s=1.5,
        idle_s=0.5,
        hits=2,
    )
    page = msgspec.json.decode(msgspec.json.encode(ObjectPage(objects=[stored])), type=ObjectPage)
    assert page == ObjectPage(objects=[stored], cursor="")
    assert set(msgspec.to_builtins(stored)) == {
        *("bucket", "name", "salt", "size", "checksum", "fragments", "leases", "is_verified"),
        *("age_s", "idle_s", "hits", "pinned_s", "expires_s"),
    }


def test_a_field_of_a_newer_node_is_ignored_and_a_new_kind_is_read() -> None:
    body = b'{"kind":"moved_to_a_peer","detail":"x","ago_s":1,"peer":"b"}'
    assert msgspec.json.decode(body, type=Explanation) == Explanation(kind="moved_to_a_peer", detail="x", ago_s=1.0)


def test_what_an_older_node_leaves_out_has_a_default() -> None:
    body = b'{"bucket":"b","objects":1,"bytes":2,"hits":3,"misses":4,"evictions":5,"refusals":6}'
    figures = msgspec.json.decode(body, type=NamespaceFigures)
    assert (figures.salt, figures.quota.hard_bytes) == ("", None)
