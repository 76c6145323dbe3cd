"""Reports as pages, in a browser: in a window as narrow as a telephone's, and for who cannot see the charts."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.browser import chromium

from tierline.bench.report import Machine, Report, Table
from tierline.bench.serving.html import html_text, page_text
from tierline.bench.serving.records import Record
from tierline.bench.serving.results import Result, Settings

WITHIN_MS = 60_000
pytestmark = pytest.mark.timeout(300)  # a browser starts
NARROW, BROAD = {"width": 400, "height": 800}, {"width": 1200, "height": 800}
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
CELLS = [f"prefixaware and tieredstorage {number}" for number in range(8)]


def run_page(output_tokens: int, requests: int = 600) -> str:
    records = [
        Record(
            index=index,
            family=f"{index // 4}",
            is_cold=index % 4 == 0,
            sent_s=float(index),
            ttft_s=0.25 + index / 10_000,
            latency_s=1.0,
            gaps_s=[0.1],
            prompt_tokens=100,
            output_tokens=output_tokens,
        )
        for index in range(requests)
    ]
    settings = Settings(
        base_url="http://h:1",
        endpoint="/v1/chat/completions",
        model="an-organisation/a-model-with-a-name-that-has-no-end-and-no-space-in-it",
        workload="documents",
        input_len=100,
        output_len=output_tokens,
        turns=4,
        prefixes=8,
        requests=requests,
    )
    return html_text(
        Result(
            version="1",
            command="tierline bench run --dataset-name documents",
            started="2026-11-20T10:11:12+00:00",
            started_s=1000.0,
            machine=Machine.here(),
            settings=settings,
            tokens_per_word=1.3,
            loads=[],
            records=records,
        )
    )


def bars_page() -> str:
    table = Table("Cells", ("cell", *CELLS), [("throughput", *(["1,234.5"] * len(CELLS)))])
    report = Report(
        bench="b", command="c", started="s", duration_s=1.0, machine=Machine.here(), rows=[], notes=[], tables=[table]
    )
    values: list[Any] = [1.5 + number for number in range(len(CELLS))]
    bars = {"title": "Throughput", "x": "cell", "y": "tokens/s", "kind": "bars", "labels": CELLS}
    return page_text("features", report, [{**bars, "names": ["tokens/s"], "data": [list(range(len(CELLS))), values]}])


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport=NARROW)
    context.set_default_timeout(WITHIN_MS)
    opened = context.new_page()
    complaints: list[str] = []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    yield opened
    context.close()
    assert complaints == []


def opened(page: Any, folder: Path, text: str) -> Any:
    (folder / "page.html").write_text(text)
    page.goto((folder / "page.html").as_uri())
    return page


@pytest.mark.parametrize("text", [run_page(8), bars_page()], ids=["run", "features"])
def test_only_wide_tables_and_charts_scroll_in_a_narrow_window(page: Any, tmp_path: Path, text: str) -> None:
    opened(page, tmp_path, text)

    page.wait_for_function(f"{OVERFLOW} === 0")
    page.set_viewport_size(BROAD)
    page.wait_for_function("document.querySelector('.u-wrap').clientWidth > 800")
    page.set_viewport_size(NARROW)
    page.wait_for_function(f"{OVERFLOW} === 0")


def test_charts_have_a_text_and_a_table(page: Any, tmp_path: Path) -> None:
    opened(page, tmp_path, run_page(8))

    text = re.compile("^Time to first token of each request: cold from 0.25 to 0.3096, warm from 0.2501 to 0.3099 ")
    page.get_by_role("img", name=text).wait_for()
    assert page.get_by_role("img").count() == page.locator("canvas").count() == 3
    page.get_by_text("Figures of this chart").first.click()
    table = page.get_by_role("table", name="Time to first token of each request")
    table.wait_for()
    assert table.get_by_role("columnheader").all_inner_texts() == ["seconds since the start", "cold", "warm"]
    assert table.get_by_role("row").nth(3).inner_text().split() == ["2", "–", "0.2502"]
    assert table.get_by_role("row").count() == 601


def test_a_table_of_many_requests_has_one_of_a_few_the_cold_ones_too(page: Any, tmp_path: Path) -> None:
    opened(page, tmp_path, run_page(8, requests=6_000))

    page.get_by_text("Figures of this chart").first.click()
    page.get_by_role("table", name="Time to first token of each request: one of 3").wait_for()
    rows = page.evaluate(
        "[...document.querySelector('details table').tBodies[0].rows].map(row => row.cells[1].innerText)"
    )
    assert len(rows) == 2_000
    assert sum(cold != "–" for cold in rows) == 500


def test_bars_are_in_a_table_by_their_names(page: Any, tmp_path: Path) -> None:
    opened(page, tmp_path, bars_page())

    page.get_by_text("Figures of this chart").click()
    row = page.get_by_role("table", name="Throughput").get_by_role("row", name=CELLS[2])
    row.wait_for()
    assert row.get_by_role("cell").inner_text() == "3.5"


def test_long_tick_labels_have_room_beside_the_axis_s_label(page: Any, tmp_path: Path) -> None:
    drawn_from = "Math.round(document.querySelectorAll('.u-over')[2].getBoundingClientRect().left)"

    few = opened(page, tmp_path, run_page(8)).evaluate(drawn_from)
    many = opened(page, tmp_path, run_page(800_000)).evaluate(drawn_from)

    assert many > few + 20
