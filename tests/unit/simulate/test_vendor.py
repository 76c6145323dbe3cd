"""The vendor's cluster: what is compared with what, and what is concluded from it."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tierline.cli.main import app
from tierline.cli.printing import Output
from tierline.cli.simulate.showing import show_assumptions, show_levels
from tierline.simulate import levels
from tierline.simulate.levels import LEVELS, beyond, climb, contenders
from tierline.simulate.running import PUBLISHED
from tierline.simulate.vendor import (
    ASSUMPTIONS,
    HELD,
    LEAST_SECONDS,
    TABLE,
    Changes,
    Choice,
    Study,
    Swing,
    Tried,
    spread,
    try_choice,
)
from tierline.simulate.vendor_report import document, draw, sentences, swing_lines, table_lines

CENTRAL: Choice = {each.name: each.central[8192] for each in ASSUMPTIONS}


def tried(caching: str, *changes: float) -> Tried:
    return Tried({**CENTRAL, "baseline caching": caching}, Changes(*changes))


def a_study(*samples: Tried) -> Study:
    swings = [Swing(ASSUMPTIONS[0], [(2, Changes(-10, -60, 5, -5)), (8, Changes(-30, -70, 20, -17))])]
    return Study(8192, Changes(-30, -70, 20, -17), samples, swings)


def test_features_make_answers_come_sooner_and_cost_less_where_documents_are_asked_about_again() -> None:
    changes = try_choice(8192, {**CENTRAL, "clients": 2, "answer": 128, "questions": 5}, seed=1, seconds=40)
    assert changes.ttft_p50 < -30
    assert changes.throughput > 0
    assert (1 + changes.cost / 100) * (1 + changes.throughput / 100) == pytest.approx(1)


def test_features_change_nothing_where_nothing_is_asked_again() -> None:
    changes = try_choice(8192, {**CENTRAL, "clients": 2, "answer": 128, "questions": 1}, seed=1, seconds=40)
    assert changes == pytest.approx((0, 0, 0, 0), abs=3)


def test_shares_count_what_goes_as_far_as_the_table_and_what_is_near_it() -> None:
    study = a_study(tried("off", -40, -75, 30, -23), tried("off", -10, -70, 15, -13), tried("on", 5, -20, -1, 1))
    assert [study.reached(measure) for measure in range(4)] == pytest.approx([1 / 3] * 4)
    assert [study.near(measure) for measure in range(4)] == pytest.approx([1 / 3, 2 / 3, 2 / 3, 2 / 3])
    assert study.near_in_all == pytest.approx(1 / 3)
    assert study.claimed == 0
    assert spread(study.samples, 0) == (-40, -10, 5)


def test_that_a_baseline_had_no_prefix_caching_is_said_where_nothing_else_reaches_the_table() -> None:
    off, on = [tried("off", -45, -80, 30, -23)] * 5, [tried("on", -45, -20, 30, -23)] * 5
    said = a_study(*off, *on).on_baseline_caching
    assert said.endswith("with it on, none of 5 samples reaches TTFT P50: it must have been off")
    assert "must" not in a_study(*off, *[tried("on", -45, -80, 30, -23)] * 5).on_baseline_caching
    assert a_study(*off).on_baseline_caching.startswith("too few samples")


def test_every_assumption_has_several_values_a_central_one_among_them_and_a_source() -> None:
    assert len({each.name for each in ASSUMPTIONS}) == len(ASSUMPTIONS)
    for each in ASSUMPTIONS:
        assert each.why
        for context in TABLE:
            assert len(set(each.values[context])) > 1
            assert each.central[context] in each.values[context]


def test_the_shortest_runs_have_requests_to_measure_where_answers_take_longest() -> None:
    central = {each.name: each.central[65536] for each in ASSUMPTIONS}
    changes = try_choice(65536, {**central, "clients": 8}, seed=1, seconds=LEAST_SECONDS)
    assert changes.throughput > 0


def test_no_run_is_shorter_than_can_be_measured_and_what_is_held_fixed_is_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = CliRunner().invoke(app, ["simulate", "vendor", "--seconds", f"{LEAST_SECONDS - 1}"])
    assert (done.exit_code, "'--seconds'" in done.output) == (2, True)

    show_assumptions(Output(is_json=False))
    shown = capsys.readouterr().out
    assert all(held.name in shown for held in HELD)


def test_ours_is_no_slower_than_theirs_at_any_load_and_much_sooner_near_saturation(
    capsys: pytest.CaptureFixture[str],
) -> None:
    climbed = climb(300, 1, lambda _: None)
    assert len(climbed) == len(LEVELS) * len(contenders())
    by = {(each.share, each.contender): each.figures for each in climbed}
    for share in LEVELS:
        ours, theirs = by[share, "tierline prefixaware"], by[share, PUBLISHED]
        assert ours["p50_ttft_ms"] <= 1.05 * theirs["p50_ttft_ms"]
        assert ours["completed"] == theirs["completed"] == 300
    assert by[0.8, "tierline prefixaware"]["p90_ttft_ms"] < 0.8 * by[0.8, PUBLISHED]["p90_ttft_ms"]
    assert beyond(climbed).count(":") == 1 + len(LEVELS)
    show_levels(Output(is_json=False), climbed)
    shown = capsys.readouterr().out
    assert all(held.name in shown for held in levels.HELD)


def test_the_report_says_what_was_assumed_tried_and_found(tmp_path: Path) -> None:
    study = a_study(tried("off", -40, -75, 30, -23), tried("on", 5, -20, -1, 1))
    result = document([study], [], started="today", command="tierline simulate vendor")
    assert all(f"'name': '{each.name}'" in str(result["assumptions"]) for each in ASSUMPTIONS)
    for held in (*HELD, *levels.HELD):
        assert held.why
        assert f"'value': {held.value!r}" in str([result["held_fixed"], result["held_fixed_by_levels"]])
    assert str(result["vendor"]).startswith("Amazon")
    assert "'file': 'llama-3.1-70b-tp8-h100'" in str(result["coefficients"])
    assert "'validation': 'never" in str(result["coefficients"])
    assert table_lines(study)[1][:3] == ("TTFT P50", "-72 %", "-70 %")
    assert swing_lines(study)[0] == ("clients", "2, 8 a replica", "-30 … -10", "-70 … -60", "+5 … +20")
    assert len(sentences(study)) == 3
    pytest.importorskip("matplotlib")
    draw([study, study], tmp_path / "swings.png")
    assert (tmp_path / "swings.png").read_bytes().startswith(b"\x89PNG")
