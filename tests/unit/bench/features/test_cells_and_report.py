"""Which cells there are, and what a report says of them: changes from the baselines, and all that is wrong."""

import re
from pathlib import Path

import pytest

from tierline.bench.features.cells import CELLS, OFF, Cell, chosen, starts
from tierline.bench.features.comparing import Comparison, Measured
from tierline.bench.features.estimate import Estimate
from tierline.bench.features.report import html_of, markdown_of, report_of, what_is_wrong
from tierline.bench.features.stacks import AS_IT_IS, cells_of_a_running_server
from tierline.bench.report import Machine, Report
from tierline.bench.serving.bottleneck import reasons_not_to_publish
from tierline.bench.serving.prices import PriceList, read_prices
from tierline.bench.serving.records import Record
from tierline.bench.serving.results import Billing, Result, Settings
from tierline.errors import ConfigurationError

ROOT = Path(__file__).parents[4]
PRICES_FILE = ROOT / "benchmarks" / "prices-example.yaml"
PRICES = read_prices(PRICES_FILE)


def result(ttft_s: float, *, answer: str = "yes", cached: int = 0, prices: PriceList = PRICES) -> Result:
    records = [
        Record(
            index=index,
            family=f"{index}",
            is_cold=index == 0,
            sent_s=index * 2 * ttft_s,
            latency_s=2 * ttft_s,
            ttft_s=ttft_s,
            gaps_s=[ttft_s],
            prompt_tokens=100,
            output_tokens=2,
            cached_tokens=cached,
            answer=[answer, "sir"],
            margins=[1.0, 1.0],
        )
        for index in range(4)
    ]
    settings = Settings(
        base_url="",
        endpoint="",
        model="m",
        workload="templates",
        input_len=100,
        output_len=2,
        turns=1,
        prefixes=1,
        requests=4,
        metadata={"engine_cache_tokens": "800", "dtype": "float32"},
    )
    return Result(
        version="",
        command="",
        started="",
        started_s=0.0,
        machine=Machine.here(),
        settings=settings,
        tokens_per_word=1.0,
        loads=[],
        billing=Billing(prices, "r7a.large", 1),
        records=records,
    )


def measured(**results: Result) -> Measured:
    comparison = Comparison(
        cells=CELLS,
        workload="templates",
        input_len=100,
        output_len=2,
        requests=4,
        prefixes=1,
        turns=None,
        concurrency=1,
        seed=0,
        folder=Path(),
        billing=Billing(PRICES, "r7a.large", 1),
    )
    by_name = {cell.name.replace("-", "_"): cell for cell in CELLS}
    return Measured(comparison, {by_name[name]: each for name, each in results.items()})


def report(found: Measured) -> Report:
    return report_of(found, command="tierline bench", started="", duration_s=1.0, machine=Machine.here())


def test_cells_are_measured_in_their_own_order_whatever_the_order_asked_for() -> None:
    assert chosen("both, off") == [OFF, CELLS[-1]]
    assert chosen("") == list(CELLS)
    with pytest.raises(ConfigurationError, match="l2"):
        chosen("off,l2")


def test_engines_are_started_three_times_for_all_cells() -> None:
    engines = [cell.engines for cell in CELLS]

    assert starts(CELLS) == 3
    assert engines == sorted(engines, key=engines.index), "cells of the same engines stand together"


def test_of_a_running_server_only_what_can_be_switched_is_compared() -> None:
    kept, without = cells_of_a_running_server(CELLS)

    assert [cell.name for cell in kept] == ["off", AS_IT_IS.name, "prefix-caching", "session", "prefixaware"]
    assert {cell.name for cell in without} == {"kvaware", "l1", "l1-redis", "l1-tieredstorage", "both"}


def test_an_estimate_follows_the_cells_so_far() -> None:
    estimate = Estimate("simulated", prompt_tokens=10_000, has_own_stacks=True)

    assert estimate.before(CELLS) > estimate.before(CELLS[:1]) > 0
    assert estimate.left([OFF], []) == 0


def test_what_a_feature_changes_is_said_of_both_baselines_in_the_vendors_form() -> None:
    tables = report(measured(off=result(1.0), prefix_caching=result(0.5), both=result(0.28))).tables

    from_off, from_caching = ({line[0]: line[1:] for line in table.lines} for table in tables[1:3])
    assert from_off["both: prefixaware, L1 + tieredstorage"] == ("−72%", "−72%", "+257%", "−72%")
    assert from_caching["both: prefixaware, L1 + tieredstorage"][1] == "−44%"


@pytest.mark.parametrize("shown_in", ["Makefile", "docs/cli.md"])
def test_the_instance_that_is_billed_has_a_price_and_can_run_the_engines(shown_in: str) -> None:
    (instance,) = set(re.findall(r"prices-example\.yaml --instance-type (\S+)", (ROOT / shown_in).read_text()))

    (line,) = [line for line in PRICES_FILE.read_text().splitlines() if line.strip().startswith(f"{instance}:")]
    assert PRICES.per_hour[instance] > 0
    assert "x86-64" in line, "vLLM's wheels for processors are for nothing else"
    assert "16 GiB" in line, "README asks for 12 GB"


def test_the_vendors_four_charts_are_in_every_output() -> None:
    priced = measured(off=result(1.0))

    assert len(getattr(report(priced).chart, "charts", ())) == 4
    page = html_of(priced, report(priced))
    assert page.count('"kind":"bars"') == 4
    assert "src=" not in page
    assert markdown_of(priced, report(priced), "c.png").startswith("# Features compared\n\n![The four charts](c.png)")


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (result(0.5, answer="no"), "wrong tokens in 4 answers"),
        (result(0.5, cached=7), "1 of 1 cold requests found something"),
    ],
)
def test_what_is_wrong_is_named_in_the_report(other: Result, named: str) -> None:
    found = measured(off=result(1.0), prefix_caching=other)

    (wrong,) = what_is_wrong(found)
    assert named in wrong
    assert any(note.startswith("Not to be published") and named in note for note in report(found).notes)


@pytest.mark.parametrize(
    ("ttft_ms", "late_ms", "is_too_late"),
    [(20, 9, False), (20, 45, True), (120, 29, False), (120, 31, True), (4000, 49, False), (4000, 51, True)],
)
def test_how_late_a_client_may_be_goes_by_what_is_measured(ttft_ms: int, late_ms: int, *, is_too_late: bool) -> None:
    sent = Record(index=0, family="", is_cold=True, sent_s=0, latency_s=9, ttft_s=ttft_ms / 1e3, late_s=late_ms / 1e3)

    assert bool(reasons_not_to_publish([sent], [], measured().comparison.late)) is is_too_late


def test_a_cell_that_could_not_be_measured_is_there_with_its_reason() -> None:
    found = measured(off=result(1.0))
    redis = Cell("l1-redis", "cache: L1 + redis", OFF.engines)
    found.missing[redis] = "redis-server not installed"

    shown = report(found)

    assert any(row.value is None and "redis-server not installed" in row.note for row in shown.rows)
    assert any("redis-server not installed" in note for note in shown.notes)
