"""The file of API keys, and what a key may spend."""

import hashlib
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tierline.errors import UsageError
from tierline.router.http.heads import BadMessage
from tierline.router.keys import Allowance, ApiKey, ApiKeys

TOKEN = "sk-0123456789abcdef"
CHAT = b"/v1/chat/completions"


def write(file: Path, *entries: dict[str, object]) -> Path:
    temporary = file.with_suffix(".new")
    temporary.write_text(yaml.safe_dump({"keys": list(entries)}))
    return temporary.replace(file)


def bearer(token: str) -> dict[bytes, bytes]:
    return {b"authorization": b"Bearer " + token.encode()}


def admitted(keys: ApiKeys, token: str = TOKEN) -> ApiKey:
    key = keys.admit(CHAT, bearer(token))
    assert key is not None
    return key


def test_a_key_is_found_by_itself_or_by_its_digest_in_either_header(tmp_path: Path) -> None:
    other = "sk-fedcba9876543210"
    digest = hashlib.sha256(other.encode()).hexdigest()
    keys = ApiKeys(write(tmp_path / "keys.yaml", {"name": "a", "token": TOKEN}, {"name": "b", "sha256": digest}))
    assert admitted(keys).name == "a"
    assert admitted(keys, other).name == "b"
    found = keys.admit(CHAT, {b"x-api-key": other.encode()})
    assert found is not None
    assert found.name == "b"


@pytest.mark.parametrize(
    "fields",
    [{}, bearer("sk-unknown-unknown"), {b"authorization": b"Basic dTpw"}, bearer(""), {b"x-api-key": b"nope"}],
)
def test_who_shows_no_key_or_another_is_refused_and_what_it_showed_is_not_repeated(
    tmp_path: Path, fields: dict[bytes, bytes]
) -> None:
    keys = ApiKeys(write(tmp_path / "keys.yaml", {"name": "a", "token": TOKEN}))
    with pytest.raises(BadMessage) as caught:
        keys.admit(CHAT, fields)
    assert caught.value.status == 401
    assert "unknown-unknown" not in str(caught.value)


@pytest.mark.parametrize("path", [b"/health", b"/ping", b"/metrics", b"/admin/endpoints"])
def test_probes_need_no_key(tmp_path: Path, path: bytes) -> None:
    assert ApiKeys(write(tmp_path / "keys.yaml", {"name": "a", "token": TOKEN})).admit(path, {}) is None


@pytest.mark.parametrize(
    ("more", "salt"),
    [({}, "a"), ({"tenant": "t"}, "t"), ({"cache_salt": "group"}, "group"), ({"cache_salt": ""}, "")],
)
def test_the_salt_is_the_tenants_unless_it_is_said(tmp_path: Path, more: dict[str, str], salt: str) -> None:
    assert admitted(ApiKeys(write(tmp_path / "k", {"name": "a", "token": TOKEN, **more}))).cache_salt == salt


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "keys"),
        ([{"name": "a"}], "either token or sha256"),
        ([{"name": "a", "token": TOKEN, "sha256": "0" * 64}], "either token or sha256"),
        ([{"name": "a", "token": "short"}], "16 printable"),
        ([{"name": "a", "token": TOKEN}, {"name": "b", "token": TOKEN}], "another key than a's"),
        ([{"name": "a", "token": TOKEN, "cache_salt": "a/b"}], "cache_salt"),
        ([{"name": "a@b", "token": TOKEN}], "a tenant or a cache_salt"),
        ([{"name": "a", "token": TOKEN, "requests_per_s": 0}], "requests_per_s"),
        ([{"name": "a", "token": TOKEN, "rate": 5}], "rate"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_without_a_word_of_its_keys(
    tmp_path: Path, entries: list[dict[str, object]], message: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        ApiKeys(write(tmp_path / "keys.yaml", *entries))
    assert TOKEN not in str(caught.value)


def test_a_changed_file_is_read_again_and_a_broken_one_leaves_the_former_keys(tmp_path: Path) -> None:
    keys = ApiKeys(write(tmp_path / "keys.yaml", {"name": "a", "token": TOKEN, "requests_per_s": 2}))
    spent = admitted(keys).requests
    write(tmp_path / "keys.yaml", {"name": "renamed", "token": TOKEN, "requests_per_s": 2})
    keys.reload()
    assert admitted(keys).name == "renamed"
    assert admitted(keys).requests is spent, "what was spent is not forgotten"
    (tmp_path / "keys.yaml").write_text("nonsense")
    keys.reload()
    assert admitted(keys).name == "renamed"
    write(tmp_path / "keys.yaml", {"name": "b", "token": TOKEN + "0"})
    keys.reload()
    with pytest.raises(BadMessage):
        admitted(keys)


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 50)), max_size=60), st.floats(0.5, 20), st.floats(1, 40))
def test_no_more_is_spent_than_flowed_in_and_who_waits_as_told_is_served(
    requests: list[tuple[float, int]], per_second: float, size: float
) -> None:
    allowance, now, spent, last = Allowance(per_second, size), 0.0, 0, 0
    for pause_s, amount in requests:
        now += pause_s
        wait_s = allowance.wait_s(1.0, now)
        now += wait_s
        assert allowance.wait_s(1.0, now) < 1e-6
        allowance.take(amount)
        spent, last = spent + amount, amount
        assert spent - last <= size + now * per_second + 1e-6


def test_a_request_that_one_rate_refuses_costs_nothing_of_the_other() -> None:
    key = ApiKey(b"", "a", "a", "a", False, frozenset(), 0, Allowance(1.0, 10.0), Allowance(1.0, 60.0))
    assert key.spend(600, now=0.0) == 0
    assert key.spend(1, now=0.0) == 541
    assert [key.spend(1, now=1000.0) for _ in range(11)] == [0] * 10 + [1]
