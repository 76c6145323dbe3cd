"""Real nodes that are one pool: computed on one, a hit on every other, whatever becomes of them."""

import asyncio
import contextlib
import itertools
import json
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import trustme
from tests.integration.node.processes import NodeProcess, store, wait_until
from tests.integration.node.test_kv_events import Listener
from tests.integration.node.test_tiers import NAMES, content_of, figure, flush, read
from tests.integration.pool import redis_servers
from tests.integration.pool.redis_servers import needs_redis
from tests.ports import free_ports

from tierline.client import CommitEntry, NodeClient, Slot
from tierline.node.server import WATCH_INTERVAL_S
from tierline.tracing.context import SAMPLED, Origin, TraceContext, working_for
from tierline.tracing.reading import TraceTree, read_traces

StartPool = Callable[..., list[NodeProcess]]


@pytest.fixture
def start_pool(tmp_path: Path) -> Iterator[StartPool]:
    """Start nodes that know of each other; settings may differ, where they are a list of one for each."""
    started: list[NodeProcess] = []

    def start(count: int, each: Sequence[dict[str, Any]] | None = None, **settings: Any) -> list[NodeProcess]:
        token = tmp_path / "pool.token"
        token.write_text("a secret of this pool alone")
        places = [f"node-{number}=127.0.0.1:{port}" for number, port in enumerate(free_ports(count))]
        usual: dict[str, Any] = {"grace_s": 0.2, "quarantine_s": 0.2, "lookup_cap_ms": 30_000}
        for number, place in enumerate(places):
            name, _, address = place.partition("=")
            own = {"node_name": name, "transfer_address": address, "peers": ",".join(places), "pool_token_file": token}
            further = {} if each is None else each[number]
            started.append(NodeProcess(tmp_path, **{**usual, **own, **settings, **further}))
        wait_until(lambda: all(len(alive(node)) == count for node in started))
        return started

    yield start
    for node in started:
        node.close()


def cluster(node: NodeProcess) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(node.get("/v1/cluster")[1])
    return document


def alive(node: NodeProcess) -> set[str]:
    return {member["name"] for member in cluster(node)["members"] if member["state"] in ("self", "alive")}


def entries(node: NodeProcess) -> int:
    """How many holders all shares of the directory have, as one node knows it."""
    return sum(member["entries"] or 0 for member in cluster(node)["members"])


def compute(client: NodeClient, names: Sequence[str] = NAMES) -> None:
    """Store what belongs to one prefix, as an engine does."""
    for name in names:
        [slot] = client.reserve("b", [name], [len(content_of(name))])
        assert isinstance(slot, Slot)
        checksum = client.mapping.write_from(slot.extents, content_of(name))
        entry = CommitEntry(slot.slot, name, len(content_of(name)), checksum, NAMES[0][:64])
        assert client.commit("b", [entry]) == [None]


def test_what_one_node_computed_is_a_hit_on_every_other_and_says_which_node_answered(start_pool: StartPool) -> None:
    first, second, third = start_pool(3)
    with first.connect(writer=True) as writer, second.connect() as reader, third.connect() as another:
        compute(writer)
        wait_until(lambda: entries(first) == len(NAMES))
        assert read(reader, NAMES) == (6, {"tieredstorage:node-0": 6})
        assert read(reader, NAMES) == (6, {})
        wait_until(lambda: entries(first) == 2 * len(NAMES))
        first.kill()
        wait_until(lambda: alive(third) == {"node-1", "node-2"})
        wait_until(lambda: entries(second) == len(NAMES))
        assert read(another, NAMES) == (6, {"tieredstorage:node-1": 6})
        [tier] = cluster(third)["tiers"]
        assert (tier["name"], tier["hits"], tier["fetched_bytes"]) == (
            "tieredstorage",
            6,
            sum(len(content_of(name)) for name in NAMES),
        )


def test_an_object_of_a_prefix_is_found_at_another_node_by_its_anchor(start_pool: StartPool) -> None:
    first, second = start_pool(2)
    with first.connect(writer=True) as writer:
        compute(writer)
    wait_until(lambda: entries(first) == len(NAMES))
    for method, name in (("GET", NAMES[1]), ("HEAD", NAMES[2])):
        path = f"/v1/kv/b/{quote(name, safe='')}?anchor={NAMES[0][:64]}"
        with second.http() as http:
            status, headers, body = http.request(method, path)
        assert (status, int(headers["content-length"])) == (200, len(content_of(name)))
        assert body == (content_of(name) if method == "GET" else b"")


async def test_a_node_that_takes_nothing_from_its_pool_does_not_say_that_it_shares_it(
    tmp_path: Path, start_pool: StartPool
) -> None:
    events = [f"ipc://{tmp_path}/events-{number}" for number in range(3)]
    each: list[dict[str, Any]] = [{"kv_events": address} for address in events]
    start_pool(3, [*each[:2], {**each[2], "tiers": f"file://{tmp_path}/cold?budget=1GiB"}])
    async with contextlib.AsyncExitStack() as stack:
        stores = [Listener(address) for address in events]
        for listening in stores:
            stack.push_async_callback(listening.subscriptions.close)
        await stores[0].until(lambda: stores[0].source.blocks.pool == "tierline")
        await stores[1].until(lambda: stores[1].source.blocks.pool == "tierline")
        await asyncio.sleep(2 * WATCH_INTERVAL_S)
        await stores[2].until(lambda: stores[2].source.blocks.pool == "")


def test_a_node_that_was_killed_and_restarted_gives_what_it_adopted(start_pool: StartPool) -> None:
    first, second = start_pool(2)
    with first.connect(writer=True) as writer:
        compute(writer)
    wait_until(lambda: entries(first) == len(NAMES))
    first.kill()
    wait_until(lambda: alive(second) == {"node-1"})
    with second.connect() as reader:
        assert read(reader, NAMES, wait_s=0.5)[0] == 0
        first.start()
        wait_until(lambda: len(alive(second)) == 2 and entries(second) == len(NAMES))
        assert read(reader, NAMES) == (6, {"tieredstorage:node-0": 6})


@pytest.mark.parametrize("l1", list(itertools.product([True, False], repeat=2)))
def test_with_l1_off_here_and_there_what_is_computed_is_kept_by_the_pool(
    start_pool: StartPool, l1: tuple[bool, bool]
) -> None:
    # On a busy machine, who waited may have its turn long after what it waited for has come.
    first, second = start_pool(2, [{"l1": is_on} for is_on in l1], grace_s=2)
    with first.connect(writer=True) as writer, second.connect() as reader:
        compute(writer)
        wait_until(lambda: entries(first) >= len(NAMES))
        assert read(reader, NAMES)[0] == 6
        if l1 == (False, False):
            wait_until(lambda: sorted(node.stats["store"]["objects"] for node in (first, second)) == [0, 6])
        assert read(writer, NAMES)[0] == 6


def test_a_node_that_stops_hands_what_nobody_else_has_to_its_peers(start_pool: StartPool) -> None:
    first, second = start_pool(2, drain_s=20)
    with first.connect(writer=True) as writer:
        compute(writer)
        wait_until(lambda: entries(first) == len(NAMES))
        assert first.stop() == 0
    with second.connect() as reader:
        wait_until(lambda: second.stats["store"]["objects"] == 6)
        assert read(reader, NAMES) == (6, {})


def test_a_bucket_that_asks_for_it_has_a_second_copy(start_pool: StartPool) -> None:
    first, second = start_pool(2, buckets=json.dumps({"b": {"copies": 2}}))
    with first.connect(writer=True) as writer:
        compute(writer)
        store(writer, "of another bucket", b"x" * 1000, bucket="c")
    wait_until(lambda: second.stats["store"]["objects"] == 6)
    first.kill()
    with second.connect() as reader:
        assert read(reader, NAMES) == (6, {})


def drawn(tree: TraceTree) -> list[object]:
    return [tree.span.name, *map(drawn, tree.children)]


def test_what_a_node_fetches_from_another_and_has_copied_there_is_in_the_traces_it_was_for(
    tmp_path: Path, start_pool: StartPool
) -> None:
    files = [tmp_path / f"traces-{number}.jsonl" for number in range(2)]
    copied = json.dumps({"b": {"copies": 2}})
    first, second = start_pool(2, [{"traces_file": file} for file in files], buckets=copied, log_level="debug")
    writing, reading = (TraceContext(number, 0xDEF, SAMPLED) for number in (1, 2))
    with first.connect(writer=True) as writer, second.connect() as reader:
        with working_for(Origin("a writer's", writing)):
            store(writer, "of two nodes", b"x" * 1000)
        wait_until(lambda: second.stats["store"]["objects"] == 1)
        store(writer, "of one", b"x" * 1000, bucket="c")
        wait_until(lambda: entries(second) == 3)
        with working_for(Origin("a reader's", reading)):
            assert len(reader.prefix_lease("c", ["of one"], 10, wait_s=20).objects) == 1
    fetched: list[object] = ["fetch tieredstorage", ["peer fetch"]]
    expected = [["commit", ["write tieredstorage", fetched]], ["prefix lease", fetched]]

    def is_told() -> bool:
        traces = read_traces(files).traces if all(map(Path.exists, files)) else []
        return [drawn(root) for trace in traces for root in trace.roots()] == expected

    wait_until(is_told)
    assert [trace.trace_id for trace in read_traces(files).traces] == [f"{number:032x}" for number in (1, 2)]
    wait_until(lambda: "a reader's" in first.log)


def test_copies_go_before_what_nobody_else_has(start_pool: StartPool) -> None:
    first, second = start_pool(2, capacity="4MiB", eviction="lru")
    with first.connect(writer=True) as writer, second.connect(writer=True) as reader:
        own = [f"own-{number}" for number in range(3)]
        for name in own:
            store(reader, name, content_of(NAMES[0]))
        compute(writer)
        wait_until(lambda: entries(first) == 9)
        assert read(reader, NAMES)[0] == 6
        wait_until(lambda: entries(first) == 15 and second.stats["store"]["resting_bytes"] == 0)
        for number in range(6):
            store(reader, f"more-{number}", content_of(NAMES[0]))
        with second.http() as http:
            assert [http.request("GET", f"/v1/kv/b/{name}/stat")[0] for name in own] == [200] * 3


@needs_redis
def test_what_no_node_has_any_more_comes_from_the_tier_behind_the_pool(tmp_path: Path, start_pool: StartPool) -> None:
    with redis_servers.one(tmp_path) as port:
        first, second = start_pool(2, tiers=f"tieredstorage,redis://127.0.0.1:{port}")
        with first.connect(writer=True) as writer, second.connect() as reader:
            compute(writer)
            wait_until(lambda: entries(first) == len(NAMES))
            wait_until(lambda: figure(first, 'tierline_node_tier_stores_total{result="stored",tier="redis"}') == 6)
            flush(first)
            assert read(writer, NAMES[:3]) == (3, {"redis": 3})
            wait_until(lambda: entries(first) == 3)
            assert read(reader, NAMES) == (6, {"tieredstorage:node-0": 3, "redis": 3})


def test_a_node_with_another_secret_is_no_member(start_pool: StartPool, tmp_path: Path) -> None:
    other = tmp_path / "other.token"
    other.write_text("a secret of another pool")
    first, second = start_pool(2)
    second.stop()
    second._settings["TIERLINE_NODE_POOL_TOKEN_FILE"] = str(other)
    second.start()
    with first.connect(writer=True) as writer, second.connect() as reader:
        compute(writer)
        wait_until(lambda: alive(first) == {"node-0"})
        assert read(reader, NAMES, wait_s=1.0) == (0, {})
        assert alive(first) == {"node-0"}


def test_nodes_with_certificates_of_one_authority_are_one_pool(start_pool: StartPool, tmp_path: Path) -> None:
    authority = trustme.CA()
    each = []
    for number in range(2):
        files = {kind: tmp_path / f"{kind}-{number}.pem" for kind in ("certificate", "key", "ca")}
        issued = authority.issue_cert("127.0.0.1", f"node-{number}")
        files["certificate"].write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(files["key"])
        authority.cert_pem.write_to_path(files["ca"])
        each.append({f"pool_tls_{kind}": file for kind, file in files.items()})
    first, second = start_pool(2, each)
    with first.connect(writer=True) as writer, second.connect() as reader:
        compute(writer)
        wait_until(lambda: entries(first) == len(NAMES))
        assert read(reader, NAMES) == (6, {"tieredstorage:node-0": 6})


def test_two_programs_at_one_port_between_nodes_are_told_apart(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = {"transfer_address": f"127.0.0.1:{taken.getsockname()[1]}", "peers": "127.0.0.1:1"}
        with pytest.raises(AssertionError, match=r"--transfer-address.*cannot be used"):
            NodeProcess(tmp_path, **settings)
