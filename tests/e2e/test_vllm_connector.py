"""Real vLLM engines around one node store: the proof that loaded KV is right, and what faults cost.

Three engines, one after the other, float32 (in bfloat16 stock vLLM differs between a cold prompt and its own prefix
hit): the *first* replica computes; the *other* one loads, inside steps; a *restarted* one loads after the node store
was killed and started again, between steps, under asynchronous scheduling. Prompts are a little longer than one or
two chunks, so that the engine's own prefix hit has the same length as ours.
"""

import pytest

pytest.importorskip("vllm")

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.node_stores import NodeStore, SlowPath, wait_until
from tests.e2e.replicas import LOOKUP_BUDGET_MS, Answer, Replica
from transformers import AutoTokenizer

from tierline.prefix import CHUNK_TOKENS, UNSHARED_SALT
from tierline.stack.model import prepare_default_model

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]

LENGTHS = [257 + 3 * index for index in range(17)] + [513 + 5 * index for index in range(3)]
GENERATED = 64
ROOT = Path(__file__).parents[2]


class World:
    """All that the tests of this module share. The engines know ``line``; what is behind it can be exchanged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = prepare_default_model(print)
        self.line = folder / "line.sock"
        self.node = NodeStore(folder, "node", "768MiB")
        self.record = folder / "record.jsonl"
        text = AutoTokenizer.from_pretrained(self.model)((ROOT / "LICENSE").read_text())["input_ids"]
        self.prompts = [text[50 * index : 50 * index + length] for index, length in enumerate(LENGTHS)]
        self.fault_prompts = [text[start : start + 260] for start in (1500, 1700)]
        self.fault_answers: list[tuple[int, ...]] = []

    def restart_node(self, through: Path | None = None) -> None:
        """Kill the node store, start it again, and lead the line to it, or to what is ``through``."""
        self.node.kill()
        self.lead_to(through or self.node.socket)
        self.node.start()

    def lead_to(self, socket: Path) -> None:
        self.line.unlink(missing_ok=True)
        self.line.symlink_to(socket)

    @property
    def objects(self) -> int:
        """How many objects the node store holds."""
        count: int = self.node.stats()["store"]["objects"]
        return count

    def recorded(self, event: str) -> dict[str, str]:
        """Return the digest of the engine's blocks by chunk, of all chunks that were recorded whole."""
        lines = [json.loads(line) for line in self.record.read_text().splitlines()]
        return {line["chain"]: line["kv"] for line in lines if line["event"] == event and line["blocks"] == 2}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("vllm"))
    world.restart_node()
    yield world
    world.node.remove()


@pytest.fixture(scope="module")
def cold(world: World) -> list[Answer]:
    """What the first replica computes from nothing; when this returns it has stored everything and is gone."""
    replica = Replica(world.model, world.line, world.record, is_async=False, hash_seed="0")
    answers = replica.answer(world.prompts, GENERATED)
    wait_until(lambda: world.objects >= sum(n // CHUNK_TOKENS for n in LENGTHS), "all is stored")
    replica.close()
    return answers


@pytest.fixture(scope="module", params=["other replica, loads inside steps", "restarted, loads between steps"])
def replica(request: pytest.FixtureRequest, world: World, cold: list[Answer]) -> Iterator[Replica]:
    is_restart = request.param.startswith("restarted")
    world.restart_node()
    replica = Replica(world.model, world.line, world.record, is_async=is_restart, hash_seed=None if is_restart else "1")
    yield replica
    replica.close()


def test_cold_and_warm_answers_are_equal_in_float32(world: World, cold: list[Answer], replica: Replica) -> None:
    warm = replica.answer(world.prompts, GENERATED)
    assert [answer.tokens for answer in warm] == [answer.tokens for answer in cold]
    assert [answer.cached_tokens for answer in warm] == [n // CHUNK_TOKENS * CHUNK_TOKENS for n in LENGTHS]
    for ours, theirs in zip(warm, cold, strict=True):
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-3)


def test_loaded_blocks_are_those_that_were_computed_byte_for_byte(world: World, replica: Replica) -> None:
    stored, loaded = world.recorded("stored"), world.recorded("loaded")
    assert len(loaded) >= sum(n // CHUNK_TOKENS for n in LENGTHS)
    assert {chain: stored[chain] for chain in loaded} == loaded


def test_a_loaded_prefix_and_the_engines_own_hit_give_the_same_bits(world: World, replica: Replica) -> None:
    # Decoding one request at a time is most of this module's time: each way of loading has half of the prompts.
    replica.forget()
    for prompt in world.prompts[replica.is_async :: 2]:
        (loaded,) = replica.answer([prompt], GENERATED)
        (own,) = replica.answer([prompt], GENERATED)
        assert loaded == own
        assert loaded.cached_tokens == len(prompt) // CHUNK_TOKENS * CHUNK_TOKENS


def test_tokens_are_counted_by_who_answered(world: World, replica: Replica) -> None:
    replica.forget()
    sources = ("host", "device")
    before = [replica.cached_tokens(source) for source in sources]
    replica.answer(world.prompts[:1], 1)
    replica.answer(world.prompts[:1], 1)
    assert [replica.cached_tokens(source) for source in sources] == [count + 256 for count in before]


def test_another_tenant_finds_nothing(world: World, replica: Replica) -> None:
    replica.forget()
    before = world.objects
    (answer,) = replica.answer(world.prompts[:1], 1, cache_salt=f"another tenant {time.monotonic_ns()}")
    assert answer.cached_tokens == 0
    wait_until(lambda: world.objects > before, "what it computed is stored, and not while another test counts")


def test_a_request_that_shares_with_nobody_finds_nothing_and_leaves_nothing(world: World, replica: Replica) -> None:
    replica.forget()
    before = world.objects
    (unshared,) = replica.answer(world.prompts[:1], 1, cache_salt=f"{UNSHARED_SALT}{time.monotonic_ns()}")
    (behind,) = replica.answer(world.prompts[:1], 1, cache_salt=f"stored after it {time.monotonic_ns()}")
    assert (unshared.cached_tokens, behind.cached_tokens) == (0, 0)
    wait_until(lambda: world.objects > before, "what was computed behind it is stored")
    assert world.objects == before + 1


def test_requests_with_one_prefix_load_it_once(world: World, cold: list[Answer], replica: Replica) -> None:
    replica.forget()
    before = replica.counter("loaded_chunks")
    answers = replica.answer(world.prompts[:1] * 4, 8)
    assert {answer.tokens for answer in answers} == {cold[0].tokens[:8]}
    assert replica.counter("loaded_chunks") - before == 1


def test_generated_tokens_are_found_in_the_next_turn(world: World, replica: Replica) -> None:
    prompt = world.fault_prompts[0][:210]
    (answer,) = replica.answer([prompt], 60)
    next_turn = [*prompt, *answer.tokens, *prompt[:20]]
    wait_until(lambda: loads(replica, [next_turn]) == 1, "the answer is stored")


def test_corrupt_bytes_cost_a_recomputation_and_are_replaced(world: World, replica: Replica) -> None:
    wait_until(lambda: loads(replica, world.fault_prompts) == 2, "the prompts are stored")
    replica.forget()
    corrupt_before = replica.counter("corrupt_chunks")
    world.node.flip_bits()
    assert tokens(replica, world.fault_prompts) == expected(world, replica)
    assert replica.counter("corrupt_chunks") - corrupt_before == 2
    wait_until(lambda: loads(replica, world.fault_prompts) == 2, "the chunks are replaced")
    # What other tests have stored is made right again.
    world.node.flip_bits()


def test_a_node_store_killed_meanwhile_costs_a_recomputation(world: World, replica: Replica) -> None:
    replica.forget()
    killer = threading.Timer(0.2, world.node.kill)
    killer.start()
    for _ in range(2):
        assert tokens(replica, world.fault_prompts) == expected(world, replica)
        replica.forget()
    killer.join()


def test_a_slow_node_store_is_not_waited_for(world: World, replica: Replica) -> None:
    path = world.folder / f"slow-{time.monotonic_ns()}.sock"
    slow = SlowPath(path, world.node.socket, delay_s=2.4 * LOOKUP_BUDGET_MS / 1000)
    world.restart_node(through=path)
    replica.forget()

    def given_up() -> float:
        return sum(replica.counter(f"lookups_{how}") for how in ("late", "failed", "skipped"))

    before = given_up()
    for _ in range(2):
        assert tokens(replica, world.fault_prompts) == expected(world, replica)
        replica.forget()
    assert given_up() > before
    slow.close()


def test_a_restarted_node_store_is_found_again(world: World, replica: Replica) -> None:
    world.restart_node()
    wait_until(lambda: loads(replica, world.fault_prompts) == 2, "the node store is found again")
    replica.forget()
    assert tokens(replica, world.fault_prompts) == expected(world, replica)


def test_a_full_node_store_costs_a_recomputation(world: World, replica: Replica) -> None:
    full = NodeStore(world.folder, "full", "4MiB")
    world.node.kill()
    full.start()
    world.lead_to(full.socket)
    replica.forget()
    before = replica.counter("stores_dropped")
    for salt in ("a", "b"):
        assert tokens(replica, world.fault_prompts, cache_salt=salt) == expected(world, replica)
    wait_until(lambda: bool(replica.answer([[1, 2]], 1)) and replica.counter("stores_dropped") > before, "it is full")
    full.remove()
    world.restart_node()


def tokens(
    replica: Replica, prompts: list[list[int]], count: int = 8, cache_salt: str | None = None
) -> list[tuple[int, ...]]:
    return [answer.tokens for answer in replica.answer(prompts, count, cache_salt)]


def expected(world: World, replica: Replica) -> list[tuple[int, ...]]:
    """What the fault prompts are answered with when no cache can have them."""
    if not world.fault_answers:
        world.fault_answers = tokens(replica, world.fault_prompts, cache_salt=str(time.monotonic_ns()))
    return world.fault_answers


def loads(replica: Replica, prompts: list[list[int]]) -> float:
    """Answer the prompts with an empty cache of the engine's own; return how many chunks were loaded for that."""
    replica.forget()
    before = replica.counter("loaded_chunks")
    replica.answer(prompts, 1)
    return replica.counter("loaded_chunks") - before
