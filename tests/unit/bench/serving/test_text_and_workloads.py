"""Plans: what is shared is shared in text, what is cold begins like nothing else, who waits waits for its prefix."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierline.bench.serving.clients import shares
from tierline.bench.serving.plan import Message, Planned, write_messages
from tierline.bench.serving.text import MARK_TOKENS, Lengths, Piece, write
from tierline.bench.serving.workloads import DIFFERENT_PREFIXES, SAME_PREFIX, Shape, default_turns, plan
from tierline.errors import ConfigurationError

NAMES = ("documents", "code", "chats", "templates", "agents", "independent", "prefixes")
ANSWER = "\n" + "- " * 20
KINDS = ("contract", "code", "talk", "question", "review", "tool", "answer")


def shape(name: str, requests: int = 60) -> Shape:
    return Shape(requests=requests, input_tokens=4000, output_tokens=20, turns=default_turns(name))


def prompts(planned: list[Planned], salt: str = "s") -> dict[int, str]:
    """Whole prompts, with answers that say nothing."""
    texts: dict[int, str] = {}
    for each in planned:
        own = "\n".join(message["content"] for message in write_messages(each, salt, Lengths(1.0)))
        texts[each.index] = f"{texts[each.after]}{ANSWER}{own}" if each.goes_on and each.after is not None else own
    return texts


def mark_of(text: str) -> tuple[str, ...]:
    return tuple(text.split()[:MARK_TOKENS])


def common_words(first: str, second: str) -> int:
    pairs = zip(first.split(), second.split(), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


@given(st.sampled_from(KINDS), st.integers(1, 3000), st.floats(0.7, 3.0))
def test_text_is_nearly_as_long_as_asked_for_and_the_same_for_the_same_seed(
    kind: str, tokens: int, rate: float
) -> None:
    piece = Piece(kind, "seed", tokens)  # type: ignore[arg-type]

    text = write(piece, "salt", rate)

    mark = min(tokens, MARK_TOKENS)
    assert 0.97 * tokens - 2 * rate <= mark + (len(text.split()) - mark) * rate <= tokens + rate
    assert text == write(piece, "salt", rate)


def test_short_pieces_together_are_as_long_as_a_long_one() -> None:
    words = [len(write(Piece("talk", f"{number}", 16), "salt", 1.45).split()) - MARK_TOKENS for number in range(1000)]

    assert sum(words) / 1000 == pytest.approx(0.98 * (16 - MARK_TOKENS) / 1.45, rel=0.02)


@given(st.sampled_from(KINDS), st.text(max_size=5), st.text(max_size=5))
def test_text_of_another_seed_or_salt_differs_before_a_block_of_tokens_ends(kind: str, seed: str, salt: str) -> None:
    piece = Piece(kind, seed, 30)  # type: ignore[arg-type]
    first = mark_of(write(piece, salt, 1.0))

    assert mark_of(write(Piece(piece.kind, f"{seed}+", 30), salt, 1.0)) != first
    assert mark_of(write(piece, f"{salt}+", 1.0)) != first


def test_what_the_server_s_template_adds_is_taken_off_and_what_is_shared_is_shared_still() -> None:
    lengths = Lengths(1.0, opening=100, turn=30)
    documents = plan("documents", shape("documents", requests=2))
    first, second = (write_messages(each, "salt", lengths)[0]["content"] for each in documents)
    opened, gone_on = plan("chats", shape("chats", requests=2))

    assert len(first.split()) < 3900
    assert common_words(first, second) >= 0.98 * (documents[1].known_tokens - 100) - 2
    for each, template in ((opened, 100), (gone_on, 30)):
        with_template, without = (
            len(write_messages(each, "salt", measured)[0]["content"].split()) for measured in (lengths, Lengths(1.0))
        )
        assert without - with_template == pytest.approx(template, abs=4)


def test_pieces_that_are_shorter_than_the_template_keep_their_marks() -> None:
    pieces = tuple(Piece("talk", f"block {number}", 16) for number in range(4))
    planned = Planned(index=0, family="", messages=(Message("user", pieces),), output_tokens=1, input_tokens=64)

    words = write_messages(planned, "salt", Lengths(1.0, opening=30))[0]["content"].split()

    assert len(words) == pytest.approx(64 - 30, abs=4)
    assert words[:MARK_TOKENS] == list(mark_of(write(Piece("talk", "block 0", 16), "salt", 1.0)))


@pytest.mark.parametrize("name", NAMES)
def test_prompts_have_their_planned_length_and_none_is_longer_than_the_context(name: str) -> None:
    planned = plan(name, shape(name))

    assert [each.index for each in planned] == list(range(60))
    assert all(0 < each.input_tokens <= 4000 for each in planned)
    assert max(each.input_tokens for each in planned) > 3500
    for each in planned:
        if not each.goes_on:
            assert sum(message.tokens for message in each.messages) == each.input_tokens


@pytest.mark.parametrize("name", NAMES)
def test_what_a_request_is_said_to_know_the_one_it_waits_for_has_had(name: str) -> None:
    planned = plan(name, shape(name))
    texts = prompts(planned)

    for each in planned:
        assert (each.known_tokens > 0) == (each.after is not None)
        if each.after is None:
            continue
        assert each.after < each.index
        assert planned[each.after].family == each.family
        known = min(each.known_tokens, planned[each.after].input_tokens)
        assert common_words(texts[each.index], texts[each.after]) >= 0.97 * known


@pytest.mark.parametrize("name", NAMES)
def test_prompts_of_different_families_differ_before_a_block_of_tokens_ends(name: str) -> None:
    planned = plan(name, shape(name))
    texts = prompts(planned)
    marks = {(each.family, mark_of(texts[each.index])) for each in planned}

    families = {each.family for each in planned}
    assert len(marks) == len({mark for _, mark in marks}) == len(families)


def test_a_chat_says_all_that_was_said_before_and_grows_to_its_context() -> None:
    chats = plan("chats", Shape(requests=40, input_tokens=2000, output_tokens=20, turns=20))

    assert [each.after for each in chats[:3]] == [None, 0, 1]
    assert [each.goes_on for each in chats[:3]] == [False, True, True]
    assert chats[19].input_tokens > 1900
    assert chats[20].after is None
    assert [each.is_cold for each in chats[:3]] == [True, False, False]


def test_prefixes_come_in_turn_and_only_the_same_one_is_known() -> None:
    planned = plan("prefixes", shape("prefixes", requests=10))

    assert [each.group for each in planned] == [SAME_PREFIX, DIFFERENT_PREFIXES] * 5
    assert [each.is_cold for each in planned] == [True, True] + [False, True] * 4


@pytest.mark.parametrize(("name", "tokens"), [("documents", 32), ("chats", 200), ("agents", 300), ("templates", 5)])
def test_a_context_that_holds_no_prompt_is_a_users_mistake(name: str, tokens: int) -> None:
    with pytest.raises(ConfigurationError, match="--input-len"):
        plan(name, Shape(requests=4, input_tokens=tokens, output_tokens=20, turns=default_turns(name)))


def test_an_unknown_workload_is_named() -> None:
    with pytest.raises(ConfigurationError, match="'songs'"):
        plan("songs", shape("documents"))


@given(st.sampled_from(NAMES), st.integers(1, 50), st.integers(1, 7))
def test_clients_share_all_requests_and_an_answer_is_where_it_is_waited_for(
    name: str, count: int, clients: int
) -> None:
    planned = plan(name, shape(name, requests=count))

    dealt = shares(planned, clients)

    assert sorted(each.index for share in dealt for each in share) == list(range(count))
    for share in dealt:
        indices = {each.index for each in share}
        assert all(each.after is None or each.after in indices for each in share)
