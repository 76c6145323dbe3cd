"""URLs of tiers: what they say, and what is said where they are wrong."""

import sys
from pathlib import Path

import pytest

from tierline.errors import ConfigurationError
from tierline.pool.engines import EngineOptions, tier_from_url
from tierline.pool.urls import Address, TierUrl

OPTIONS = EngineOptions()


def redis_settings(url: str) -> "object":
    from tierline.pool.redis import RedisSettings

    return RedisSettings.from_url(TierUrl(url))


def test_a_redis_url_says_where_and_how(tmp_path: Path) -> None:
    pytest.importorskip("redis")
    from tierline.pool.redis import RedisSettings

    (tmp_path / "ca.pem").touch()
    settings = RedisSettings.from_url(
        TierUrl(
            f"rediss+sentinel://me:p%40ss@[::1]:1,b/main/3?ttl=0&part=1MiB&streams=2&timeout=0.5&ca={tmp_path}/ca.pem"
        )
    )
    assert settings.addresses == [Address("::1", 1), Address("b", 26379)]
    assert (settings.deployment, settings.master, settings.database) == ("sentinel", "main", 3)
    assert (settings.username, settings.password, settings.is_tls) == ("me", "p@ss", True)
    assert (settings.ttl_s, settings.part_bytes, settings.streams, settings.timeout_s) == (0, 1 << 20, 2, 0.5)
    assert "p%40ss" not in settings.shown
    assert "p@ss" not in repr(settings)


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("nowhere", "begins with its scheme"),
        ("http://a", "one of redis://"),
        ("redis://", "HOST or HOST:PORT"),
        ("redis://a:0", "HOST or HOST:PORT"),
        ("redis://a:b", "HOST or HOST:PORT"),
        ("redis://a,b", "redis+cluster://"),
        ("redis://a/x", "a database's number"),
        ("redis+cluster://a/1", "no path"),
        ("redis+sentinel://a", "the master's name"),
        ("redis://a?part=1MB", "part=a size such as"),
        ("redis://a?part=1KiB", "part=a size from"),
        ("redis://a?streams=0", "streams=a whole number from 1"),
        ("redis://a?timeout=soon", "timeout=a number from"),
        ("redis://a?prefix=a:b", "prefix=letters"),
        ("redis://a?ttl=1&ttl=2", "each option once"),
        ("redis://a?ttl=", "each option once, with a value"),
        ("redis://a?tll=1", "the options ca, certificate"),
        ("redis://a?ca=/nowhere", "ca=the path of a file that exists"),
        ("redis://a?ca=/etc/passwd", "with rediss:// only"),
    ],
)
def test_what_a_url_may_not_say_is_named_with_what_it_may(url: str, allowed: str) -> None:
    pytest.importorskip("redis")
    with pytest.raises(ConfigurationError) as refused:
        tier_from_url(url, OPTIONS)
    assert allowed in str(refused.value)
    assert repr(url) in str(refused.value)


@pytest.mark.parametrize("password", ["hidden", "hid/den", "hid@den", "hid#den", "hid?den", "hid:den", "/hidden"])
@pytest.mark.parametrize("rest", ["a", "a:6379/0", "a:6379?no-such=1", "a,b", "a:x"])
def test_whatever_is_wrong_with_a_url_its_password_is_not_shown(password: str, rest: str) -> None:
    pytest.importorskip("redis")
    try:
        shown = TierUrl(f"redis://me:{password}@{rest}").shown
        tier_from_url(f"redis://me:{password}@{rest}", OPTIONS)
    except ConfigurationError as refused:
        shown = str(refused)
    assert "hid" not in shown
    assert "den" not in shown.replace("hidden", "")


def test_a_library_that_is_missing_is_named_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("redis", "tierline.pool.redis"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if "site-packages" not in entry])
    with pytest.raises(ConfigurationError, match=r"tierline\[redis\]"):
        tier_from_url("redis://a", OPTIONS)


@pytest.mark.parametrize("url", ["redis://a", "mooncake://a", "s3://a", "file:///a?budget=1GiB"])
def test_every_option_of_every_engine_is_in_the_documentation(url: str) -> None:
    page = (Path(__file__).parents[3] / "docs" / "tier-engines.md").read_text()
    with pytest.raises(ConfigurationError) as refused:
        tier_from_url(f"{url}{'&' if '?' in url else '?'}no-such-option=1", OPTIONS)
    known = str(refused.value).partition("the options ")[2].partition(" of ")[0]
    if not known:
        pytest.skip(str(refused.value))
    assert [option for option in known.split(", ") if f"`{option}`" not in page] == []
