"""What the programs really say of themselves, beside the catalogue: nothing that is not listed, and as it is listed."""

import time

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.watched_stack import WatchedStack

from tierline.metrics import CATALOGUE, PROGRAMS

NOT_HERE = {
    "tierline_node_certificate_expiry_seconds": "no node has a certificate",
    "tierline_router_spans_total": "no router sends spans",
    "tierline_node_spans_total": "no node sends spans",
    "tierline_controller_lmcache_state": "no worker of LMCache tells",
    "tierline_controller_lmcache_chunks": "no worker of LMCache tells",
    "tierline_controller_lmcache_messages_total": "no worker of LMCache tells",
}
"""What this stack does not export, and why; ``tests/unit`` and ``tests/integration/router`` have seen it."""
TOLD_WITHIN_S = 120.0
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.mark.parametrize("program", ["tierline node", "tierline router", "tierline controller", "tierline proxy"])
def test_all_that_a_program_exports_is_in_the_catalogue_as_it_is(stack: WatchedStack, program: str) -> None:
    listed = {each.name for each in PROGRAMS[program]}
    seen = set()
    for url in stack.pages[program]:
        for family in text_string_to_metric_families(stack.page(url)):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            assert name in listed
            seen.add(name)
            definition = CATALOGUE[name]
            assert (family.type, family.documentation) == (definition.kind, definition.meaning) or not name.startswith(
                ("tierline", "model")
            )
            assert {sample.name for sample in family.samples} <= set(definition.series)
            for sample in family.samples:
                assert sample.labels.keys() - {"le"} == set(definition.labels), sample
    assert listed - seen == NOT_HERE.keys() & listed


def test_the_collector_exports_its_own_beside_what_it_read(stack: WatchedStack) -> None:
    [url] = stack.pages["tierline collector"]
    ours = {each.name: each for program in ("tierline collector", "tierline proxy") for each in PROGRAMS[program]}
    found = set()
    for family in text_string_to_metric_families(stack.page(url)):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found.add(name)
        assert family.type == ours[name].kind
    assert found >= {each.name for each in PROGRAMS["tierline collector"]} | {"model_invocations_total"}


def test_what_happened_is_counted(stack: WatchedStack) -> None:
    for program, sample in (
        ("tierline node", 'tierline_node_tier_hits_total{source="node-0",tier="tieredstorage"}'),
        ("tierline router", 'tierline_router_kv_predicted_tokens_total{tier="gpu"}'),
        ("tierline router", 'tierline_router_kv_controller_lookups_total{outcome="answered"}'),
        ("tierline router", "tierline_router_workers"),
        ("tierline controller", 'tierline_controller_messages_total{kind="lookup"}'),
        ("tierline proxy", 'model_ttfb_milliseconds_bucket{cluster_id="",cluster_name="here"'),
    ):
        until_told(stack, program, sample)


def until_told(stack: WatchedStack, program: str, sample: str) -> None:
    """Until a page has a sample; meanwhile there is traffic, of which some goes another way on a busy machine."""
    deadline = time.monotonic() + TOLD_WITHIN_S
    while not any(f"\n{sample}" in stack.page(url) for url in stack.pages[program]):
        assert time.monotonic() < deadline, sample
        stack.traffic()
