"""Coefficient files: what they say, what is refused, and that those that come along are what their source says."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierline.bench.engine_model import Engine, Job
from tierline.bench.traces import BLOCK_TOKENS
from tierline.errors import ConfigurationError, UsageError
from tierline.simulate import coefficients
from tierline.simulate.fitting import (
    Decode,
    DecodeSeen,
    Prefill,
    PrefillSeen,
    fit_decode,
    fit_prefill,
)

SHIPPED = coefficients.shipped()
TEXT = """
schema: tierline-coefficients/1
model: toy
hardware: none
engine: none
source: a test
date: 2026-01-02
kv_bytes_per_token: 1024
kv_tokens: 100000
prefill: {first_s: 0.01, token_s: 1.0e-4, attention_s: 1.0e-9}
decode: {step_s: 0.02, sequence_s: 1.0e-4, context_s: 1.0e-8}
"""


@pytest.mark.parametrize("name", SHIPPED)
def test_what_comes_along_is_within_a_tenth_of_what_it_was_fitted_to(name: str) -> None:
    accuracy = coefficients.read(name).accuracy
    assert max(accuracy.prefill_most or 100, accuracy.decode_most or 100) < 10


def test_the_coefficients_of_the_large_model_are_the_fit_of_its_observations() -> None:
    known = coefficients.read("llama-3.1-70b-tp8-h100")
    prefill = fit_prefill([PrefillSeen(*each) for each in known.observations.prefill])
    decode = fit_decode([DecodeSeen(*each) for each in known.observations.decode])
    assert tuple(dict(known.prefill).values()) == pytest.approx(prefill, rel=1e-3)
    assert tuple(dict(known.decode).values()) == pytest.approx(decode, rel=1e-3)


@given(st.floats(1e-4, 0.1), st.floats(1e-6, 1e-2), st.one_of(st.just(0.0), st.floats(1e-10, 1e-8)))
def test_a_fit_finds_what_made_the_observations(first_s: float, token_s: float, attention_s: float) -> None:
    made = Prefill(first_s, token_s, attention_s)
    asked = [(256, 0), (1024, 0), (4096, 0), (16384, 0), (512, 8192), (512, 32768)]
    fitted = fit_prefill([PrefillSeen(n, c, made.seconds(n, c)) for n, c in asked])
    for n, c in [*asked, (2048, 2048)]:
        assert fitted.seconds(n, c) == pytest.approx(made.seconds(n, c), rel=1e-3)
    assert min(fitted) >= 0


def test_nothing_negative_is_fitted_though_it_would_be_nearer() -> None:
    fitted = fit_decode([DecodeSeen(1, 100, 0.02), DecodeSeen(8, 800, 0.019), DecodeSeen(1, 9000, 0.021)])
    assert min(fitted) >= 0
    assert fitted.step_s == pytest.approx(0.02, rel=0.1)
    assert isinstance(fitted, Decode)


def test_a_token_and_a_step_always_take_time_though_it_would_be_nearer_without() -> None:
    prefill = fit_prefill([PrefillSeen(100, 0, 0.0001), PrefillSeen(200, 0, 0.0004), PrefillSeen(400, 0, 0.0016)])
    decode = fit_decode([DecodeSeen(1, 100, 0.01), DecodeSeen(2, 200, 0.02), DecodeSeen(4, 400, 0.04)])
    assert prefill.token_s > 0
    assert decode.step_s > 0


@pytest.mark.parametrize("seen", [[], [PrefillSeen(100, 0, 0.0)]])
def test_too_little_to_fit_is_a_users_mistake(seen: list[PrefillSeen]) -> None:
    with pytest.raises(UsageError, match="prefill: got"):
        fit_prefill(seen)


@pytest.mark.parametrize("tokens", [512, 8192, 65536])
def test_an_engine_takes_the_times_that_the_file_says(tokens: int) -> None:
    known = coefficients.read("llama-3.1-70b-tp8-h100")
    engine = Engine(known.engine_model(), 10**6)
    blocks = tuple(range(tokens // BLOCK_TOKENS))
    job = Job(0.0, blocks, tokens, 101)
    engine.submit(job)
    list(engine.advance(1e9))
    said = Prefill(**dict(known.prefill)).seconds(tokens, 0)
    steps = -(-tokens // known.step_tokens)
    assert job.first_token_at_s == pytest.approx(said + (steps - 1) * known.prefill.first_s)
    a_token = Decode(**dict(known.decode)).seconds(1, tokens + 51)
    assert (job.ended_at_s - job.first_token_at_s) / 100 == pytest.approx(a_token, rel=1e-3)


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_what_is_written_is_read_again(tmp_path: Path, suffix: str) -> None:
    known = coefficients.read(SHIPPED[0])
    path = tmp_path / f"mine{suffix}"
    coefficients.write(known, path)
    assert coefficients.read(str(path)) == known


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("model: toy\n", "", "toy.yaml: model: got None; allowed: a value"),
        ("kv_tokens: 100000", "kv_tokens: 12", "toy.yaml: kv_tokens: got 12; allowed: greater than or equal to 1024"),
        ("token_s: 1.0e-4", "token_s: -1", "toy.yaml: prefill.token_s: got -1; allowed: greater than 0"),
        ("token_s: 1.0e-4", "token_s: .nan", "toy.yaml: prefill.token_s: got nan; allowed: a finite number"),
        ("engine: none", "engine: none\nspeed: 3", "toy.yaml: speed: got 3; allowed: the keys schema, model, hardware"),
        ("coefficients/1", "coefficients/2", "toy.yaml: schema: got 'tierline-coefficients/2'; allowed: 'tierline-c"),
        ("date: 2026-01-02", "date: someday", "toy.yaml: date: got 'someday'; allowed: a valid date"),
        ("model: toy", "model: [", "toy.yaml: while parsing"),
        (TEXT, "3", "toy.yaml: expected keys and values"),
    ],
)
def test_a_wrong_file_is_refused_by_file_and_key(old: str, new: str, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        coefficients.parse(TEXT.replace(old, new), "toy.yaml")
    assert str(refused.value).startswith(message)


def test_a_file_without_observations_says_that_its_accuracy_is_not_known() -> None:
    assert str(coefficients.parse(TEXT, "toy.yaml").accuracy).startswith("not known")


def test_every_file_says_where_it_is_from_how_far_it_is_off_and_whether_it_was_validated() -> None:
    never = coefficients.provenance("toy.yaml", coefficients.parse(TEXT, "toy.yaml"))
    assert (never["file"], never["source"], never["date"]) == ("toy.yaml", "a test", "2026-01-02")
    assert never["validation"].startswith("never")
    text = TEXT + (
        "validation: {date: 2026-01-03, workload: two readers, ttft_p50_percent: -3.0, ttft_p90_percent: 12.0, "
        "throughput_percent: 4.0, hit_rate_points: 0.5}"
    )
    known = coefficients.provenance("toy.yaml", coefficients.parse(text, "toy.yaml"))
    assert known["validation"] == (
        "2026-01-03, simulated against measured: TTFT P50 -3.0 %, P90 +12.0 %, output tokens/s +4.0 %, cached tokens "
        "+0.5 points (two readers)"
    )


@pytest.mark.parametrize(("place", "kind"), [("nobody", ConfigurationError), ("/nowhere/a.yaml", UsageError)])
def test_a_file_that_is_not_there_is_refused(place: str, kind: type[UsageError]) -> None:
    with pytest.raises(kind, match="--coefficients"):
        coefficients.read(place)
