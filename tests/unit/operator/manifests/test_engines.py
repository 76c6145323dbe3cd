import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.endpoints import IMAGE, SPEC, endpoint

from tierline.operator.manifests.engines import Engine, engine_of, overlaid, says, value_of


def engine(image: str = IMAGE, command: list[str] | None = None, *arguments: str, **annotations: str) -> Engine:
    changes = {"worker": {**SPEC["worker"], "image": image, "command": command or []}}
    said = {key.replace("_", "-"): value for key, value in annotations.items()}
    return engine_of(endpoint(changes, annotations=said), arguments)


@pytest.mark.parametrize(
    ("image", "kind", "version"),
    [
        (IMAGE, "vllm", (0, 11)),
        ("vllm/vllm-openai:v0.32.0", "vllm", (0, 32)),
        ("registry.example:5000/team/vllm:0.32.1-cu129@sha256:0123", "vllm", (0, 32)),
        ("vllm/vllm-openai:latest", "vllm", None),
        ("vllm/vllm-openai", "vllm", None),
        ("lmcache/vllm-openai:v0.4.7", "vllm", None),
        ("lmsysorg/sglang:v0.5.6", "other", None),
    ],
)
def test_an_image_says_what_it_is(image: str, kind: str, version: tuple[int, int] | None) -> None:
    found = engine(image)

    assert (found.kind, found.version) == (kind, version)


def test_annotations_say_it_of_images_whose_name_does_not() -> None:
    found = engine("registry.example/llm:7", None, engine="vllm", engine_version="0.32.0")

    assert (found.kind, found.version) == ("vllm", (0, 32))


@pytest.mark.parametrize(
    ("command", "arguments", "model"),
    [
        ([], ["--model", "/opt/ml/model"], "/opt/ml/model"),
        ([], ["--model=/opt/ml/model"], "/opt/ml/model"),
        ([], ["/opt/ml/model", "--port", "8000"], "/opt/ml/model"),
        (["vllm", "serve"], ["/opt/ml/model"], "/opt/ml/model"),
        (["vllm", "serve", "/opt/ml/model"], ["--port", "8000"], "/opt/ml/model"),
        (["/bin/sh", "-c"], ["exec vllm serve /opt/ml/model --port 8000"], "/opt/ml/model"),
        (["/bin/sh", "-c", "exec /start"], [], None),
        ([], ["--port", "8000"], None),
    ],
)
def test_the_command_line_says_which_model(command: list[str], arguments: list[str], model: str | None) -> None:
    assert engine(IMAGE, command, *arguments).model == model


def test_processes_are_those_of_all_kinds_of_parallelism() -> None:
    assert engine(IMAGE, None, "-tp", "4", "--pipeline-parallel-size=2").processes == 8
    assert engine(IMAGE, ["bash", "-lc", "vllm serve m --tensor-parallel-size 2"]).processes == 2
    assert engine(IMAGE, None, "--tensor-parallel-size", "$(TP)").processes == 1


def test_a_script_that_is_broken_is_read_as_far_as_it_goes() -> None:
    assert engine(IMAGE, ["sh", "-c", "vllm serve 'm --tensor-parallel-size 2"]).processes == 2


def test_the_last_of_equal_arguments_counts() -> None:
    assert value_of(["--model", "a", "--model=b"], "--model") == "b"
    assert value_of(["--model"], "--model") is None


def test_what_is_said_over_comes_in_place_of_what_was_said() -> None:
    base = ["--model", "/m", "--max-num-seqs", "32", "--enforce-eager", "--lora-modules", "a", "b", "--seed", "-1"]

    assert overlaid(base, ["--max_num_seqs=16", "--lora-modules", "c"]) == (
        *("--model", "/m", "--enforce-eager", "--seed", "-1"),
        *("--max_num_seqs=16", "--lora-modules", "c"),
    )


WORDS = st.lists(st.sampled_from(["--a", "--b-c=1", "--b_c", "-x", "1", "-2", "v w"]), max_size=8)


@given(base=WORDS, over=WORDS)
def test_what_is_said_over_is_there_as_it_was_said(base: list[str], over: list[str]) -> None:
    result = overlaid(base, over)

    assert list(result[len(result) - len(over) :]) == over
    kept = result[: len(result) - len(over)]
    for flag in ("--a", "--b-c", "-x"):
        assert not (says(over, flag) and says(kept, flag))
