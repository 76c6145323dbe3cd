"""Prompts are as long as they are planned, as a real model's tokenizer and chat template count them."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import jinja2
import pytest

from tierline.bench.serving import trace_files, workloads
from tierline.bench.serving.lengths import Messages, learn
from tierline.bench.serving.plan import write_messages
from tierline.bench.serving.text import Lengths
from tierline.stack.model import prepare_default_model

tokenizers = pytest.importorskip("tokenizers")

CONTEXT = 8192
Count = Callable[[Messages], int]


@pytest.fixture(scope="module")
def tokens() -> Count:
    """Return what SmolLM2 makes of a prompt."""
    folder = prepare_default_model(print)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    template = jinja2.Environment(autoescape=False).from_string((folder / "chat_template.jinja").read_text())
    return lambda messages: len(tokenizer.encode(template.render(messages=messages, add_generation_prompt=True)).ids)


async def learned(tokens: Count, workload: str, context: int) -> Lengths:
    async def count(messages: Messages) -> int:
        return tokens(messages)

    lengths = await learn(count, workload, context, "samples")
    assert lengths is not None
    return lengths


async def test_what_is_learned_is_what_the_template_and_the_text_are(tokens: Count) -> None:
    lengths = await learned(tokens, "chats", CONTEXT)

    assert lengths.per_word == pytest.approx(1.45, rel=0.03)
    assert lengths.opening == tokens([{"role": "user", "content": ""}])
    assert lengths.turn == 11


@pytest.mark.parametrize("name", ["documents", "code", "chats", "templates", "agents", "independent", "prefixes"])
async def test_no_prompt_is_longer_than_the_context_and_each_is_nearly_as_long_as_planned(
    tokens: Count, name: str
) -> None:
    turns, answer = workloads.default_turns(name), 64
    planned = workloads.plan(name, workloads.Shape(turns, CONTEXT, answer, turns))
    lengths = await learned(tokens, name, CONTEXT)

    said: Messages = []
    for each in planned:
        own = write_messages(each, "salt", lengths)
        said = [*said, {"role": "assistant", "content": " the" * answer}, *own] if each.goes_on else own
        assert tokens(said) == pytest.approx(each.input_tokens, rel=0.05)
        assert tokens(said) <= CONTEXT


def mooncake(length: int) -> str:
    blocks = list(range(-(-length // 512)))
    return json.dumps({"timestamp": 0, "input_length": length, "output_length": 1, "hash_ids": blocks})


def bailian(length: int) -> str:
    blocks = list(range(-(-length // 16)))
    entry = {"chat_id": 1, "timestamp": 0.5, "input_length": length, "output_length": 1, "hash_ids": blocks}
    return json.dumps(entry)


def azure(length: int) -> str:
    return f"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,{length},1"


def burstgpt(length: int) -> str:
    return f"Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,GPT-4,{length},1,{length + 1},API"


@pytest.mark.parametrize(
    ("form", "length"), list(itertools.product([mooncake, bailian, azure, burstgpt], [640, 2048, 8192]))
)
async def test_a_replayed_prompt_is_about_as_long_as_in_its_trace(
    tokens: Count, tmp_path: Path, form: Callable[[int], str], length: int
) -> None:
    (tmp_path / "trace").write_text(form(length) + "\n")
    (planned,) = trace_files.plan(trace_files.read(tmp_path / "trace"))

    messages = write_messages(planned, "salt", await learned(tokens, "trace", 0))

    assert tokens(messages) == pytest.approx(length, rel=0.05)


async def test_a_prompt_of_one_short_block_is_not_many_times_as_long(tokens: Count) -> None:
    lengths = Lengths((await learned(tokens, "trace", 0)).per_word)
    trace = [trace_files.Traced(0.0, 16, 1, (number,), 16) for number in range(200)]
    empty = tokens([{"role": "user", "content": ""}])

    written = [tokens(write_messages(each, "salt", lengths)) - empty for each in trace_files.plan(trace)]

    assert sum(written) / len(written) == pytest.approx(16, rel=0.05)
    assert max(written) <= 24
