"""Fuzzing of what reads bytes from outside: the corpus replayed, and mutations of it drawn by hypothesis.

Hypothesis rather than a coverage-guided fuzzer: the bytes are taken apart by llhttp and msgspec, in C, where Python
coverage sees nothing; what is ours is the state around them, and that is reached by cutting and joining whole
requests. A longer run: ``TIERLINE_FUZZ_EXAMPLES=100000 python -m pytest tests/fuzz``. The smallest input that fails is
left in the corpus as ``failing.bin``; under a better name it is replayed for ever.
"""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fuzz.targets import TARGETS

from tierline.wire.messages import FRAME_HEADER_BYTES

CORPUS = Path(__file__).parent / "corpus"
FILES = sorted(CORPUS.glob("*/*.bin"))
SEEDS = {target: [path.read_bytes() for path in FILES if path.parent.name == target] for target in TARGETS}

EXAMPLES = int(os.environ.get("TIERLINE_FUZZ_EXAMPLES", "250"))
FUZZED = settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), print_blob=True)
LONG = pytest.mark.timeout(120 if EXAMPLES <= 1000 else 0)

INTERESTING = [b"\r\n", b"\r\n\r\n", b"%", b"%00", b"/", b"?", b"99999999999999999999", b"\0", b"-1", b" ", b"\xff"]
PIECES = st.sampled_from(INTERESTING) | st.binary(max_size=12)


@st.composite
def mutants(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A seed, or two joined, with some of its bytes removed, repeated, changed or put in."""
    mutant = bytearray(b"".join(draw(st.lists(st.sampled_from(seeds), min_size=1, max_size=3))))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(mutant)))
        length = draw(st.sampled_from([0, 1, 1, 2, 8, 64]))
        match draw(st.sampled_from(["put in", "replace", "remove", "repeat", "cut off"])):
            case "put in":
                mutant[at:at] = draw(PIECES)
            case "replace":
                mutant[at : at + length] = draw(PIECES)
            case "remove":
                del mutant[at : at + length]
            case "repeat":
                mutant[at:at] = mutant[at : at + length] * draw(st.integers(1, 20))
            case "cut off":
                del mutant[at:]
    return bytes(mutant)


@st.composite
def framed_mutants(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Frames whose messages are mutants and whose lengths fit them, mostly."""
    payloads = [payload for seed in seeds for payload in _payloads(seed)]
    frames = bytearray()
    for _ in range(draw(st.integers(1, 6))):
        payload = draw(st.sampled_from(payloads) | mutants(payloads)) or b"\0"
        length = draw(st.just(len(payload)) | st.just(len(payload)) | st.integers(0, 2**32 - 1))
        frames += length.to_bytes(FRAME_HEADER_BYTES, "little") + payload
    return bytes(frames)


def _payloads(frames: bytes) -> list[bytes]:
    payloads = []
    while frames:
        length = int.from_bytes(frames[:FRAME_HEADER_BYTES], "little")
        payloads.append(frames[FRAME_HEADER_BYTES : FRAME_HEADER_BYTES + length])
        frames = frames[FRAME_HEADER_BYTES + length :]
    return payloads


CHANGES = st.tuples(
    st.integers(0, 128).map(lambda unit: unit * 64 + 4096) | st.integers(0, 8000),
    st.integers(0, 63),
    st.binary(min_size=1, max_size=16) | st.sampled_from([bytes([state]) for state in range(6)]),
)
"""Place of a record or a body, place in it, and what is written there."""


@st.composite
def changed_journals(draw: st.DrawFn) -> bytes:
    changes = bytearray([draw(st.integers(0, 1))])
    for start, within, piece in draw(st.lists(CHANGES, max_size=5)):
        changes += (start + within).to_bytes(2, "little") + bytes([len(piece)]) + piece
    return bytes(changes)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_input_of_the_corpus_does_no_harm(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())


@LONG
@given(data=mutants(SEEDS["http"]))
@FUZZED
def test_any_bytes_of_an_http_connection_do_no_harm(data: bytes) -> None:
    run("http", data)


@LONG
@given(data=mutants(SEEDS["requests"]))
@FUZZED
def test_any_bytes_of_a_client_go_on_as_what_they_were_taken_for_or_not_at_all(data: bytes) -> None:
    run("requests", data)


@LONG
@given(data=mutants(SEEDS["responses"]))
@FUZZED
def test_any_bytes_of_an_endpoint_are_one_answer_or_a_broken_one(data: bytes) -> None:
    run("responses", data)


@LONG
@given(data=mutants(SEEDS["requests"]))
@FUZZED
def test_any_bytes_of_a_client_pass_a_proxy_as_what_they_were_taken_for_or_not_at_all(data: bytes) -> None:
    run("passed_on", data)


@LONG
@given(data=mutants(SEEDS["responses"]))
@FUZZED
def test_any_bytes_of_a_model_pass_a_proxy_as_one_answer_or_a_broken_one(data: bytes) -> None:
    run("passed_back", data)


@LONG
@given(data=mutants(SEEDS["pages"]))
@FUZZED
def test_any_page_of_metrics_is_shown_whole_or_refused(data: bytes) -> None:
    run("pages", data)


@LONG
@given(data=mutants(SEEDS["traces"]))
@FUZZED
def test_any_file_of_spans_is_drawn_or_refused_in_one_line(data: bytes) -> None:
    run("traces", data)


@LONG
@given(data=mutants(SEEDS["request_traces"]))
@FUZZED
def test_any_file_of_requests_is_replayed_or_refused_in_one_line(data: bytes) -> None:
    run("request_traces", data)


@LONG
@given(data=framed_mutants(SEEDS["frames"]))
@FUZZED
def test_any_frames_of_a_socket_connection_do_no_harm(data: bytes) -> None:
    run("frames", data)


@LONG
@given(data=framed_mutants(SEEDS["lookups"]))
@FUZZED
def test_any_frames_of_a_router_do_a_controller_no_harm(data: bytes) -> None:
    run("lookups", data)


@LONG
@given(data=framed_mutants(SEEDS["depths"]))
@FUZZED
def test_any_frames_of_a_controller_do_a_router_no_harm(data: bytes) -> None:
    run("depths", data)


@LONG
@given(data=framed_mutants(SEEDS["gossip"]))
@FUZZED
def test_whatever_another_router_says_leaves_what_is_known_whole(data: bytes) -> None:
    run("gossip", data)


@LONG
@given(data=framed_mutants(SEEDS["fetches"]))
@FUZZED
def test_whatever_a_node_asks_another_for_is_answered_with_whole_objects_or_not(data: bytes) -> None:
    run("fetches", data)


@LONG
@given(data=mutants(SEEDS["arrivals"]))
@FUZZED
def test_whatever_a_node_answers_another_writes_into_the_pages_that_it_is_for(data: bytes) -> None:
    run("arrivals", data)


@LONG
@given(data=mutants(SEEDS["handshakes"]))
@FUZZED
def test_whatever_is_said_without_the_token_lets_nobody_in(data: bytes) -> None:
    run("handshakes", data)


@LONG
@given(data=framed_mutants(SEEDS["announcements"]))
@FUZZED
def test_whatever_a_member_announces_the_objects_of_others_stay_theirs(data: bytes) -> None:
    run("announcements", data)


@LONG
@given(data=framed_mutants(SEEDS["answers"]))
@FUZZED
def test_whatever_a_member_answers_nobody_waits_for_ever(data: bytes) -> None:
    run("answers", data)


@LONG
@given(data=changed_journals())
@FUZZED
def test_any_change_of_a_journal_is_refused_or_loses_records_only(data: bytes) -> None:
    run("journal", data)


def run(target: str, data: bytes) -> None:
    """Fuzz once; hypothesis runs the smallest failing input last, so that one stays."""
    try:
        TARGETS[target](data)
    except BaseException:
        (CORPUS / target / "failing.bin").write_bytes(data)
        raise
