"""Words and figures as people read them, and names that a terminal does not obey."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierline.cli.printing import Output, duration, harmless, percentage, plural


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "-"),
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (185, "3 min 5 s"),
        (3600, "1 h"),
        (7800, "2 h 10 min"),
        (4 * 86400 + 3 * 3600 + 59, "4 d 3 h"),
    ],
)
def test_a_time_is_told_in_its_two_largest_units(seconds: float | None, said: str) -> None:
    assert duration(seconds) == said


def test_shares_and_counts_are_told_in_words() -> None:
    assert (percentage(1, 3), percentage(0, 0)) == ("33.3 %", "-")
    assert (plural(1, "object"), plural(1234, "object")) == ("1 object", "1,234 objects")


@given(st.text())
def test_no_name_holds_what_a_terminal_obeys(name: str) -> None:
    assert harmless(name).isprintable()


def test_an_escape_sequence_is_spelled_out_and_letters_of_any_script_stay() -> None:
    assert harmless("a\x1b[2Jb\n") == "a\\x1b[2Jb\\n"
    assert harmless("größe@模型") == "größe@模型"


def test_a_table_beside_a_terminal_cuts_no_name_and_ends_its_lines_with_text(
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = "key" * 300
    Output(is_json=False).table(("KEY", ">SIZE", "STATE"), [(name, "1B", "x"), ("[red]k", "10KiB", "long")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == [name, "1B", "x"]
    assert lines[2].split() == ["[red]k", "10KiB", "long"]
    assert all(line == line.rstrip() for line in lines)
