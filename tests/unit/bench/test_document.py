"""What the benchmark of documents asks of a running stack."""

import pytest

from tierline.bench.document import computes_float32


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--dtype", "float32"], True),
        (["--dtype=float"], True),
        (["--dtype", "auto", "--dtype=float32"], True),
        (["--dtype", "float32", "--enforce-eager", "--dtype=bfloat16"], False),
        (["--dtype", "auto"], False),
        (["--dtype"], False),
        (["--model", "float32"], False),
        ([], False),
    ],
)
def test_the_last_dtype_on_the_engines_command_line_decides(arguments: list[str], expected: bool) -> None:
    assert computes_float32(["python", "-m", "vllm", *arguments]) is expected
