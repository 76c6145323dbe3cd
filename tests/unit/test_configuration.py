"""Configuration: three sources in rising order, and messages that name what the user wrote."""

from pathlib import Path
from typing import ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from tierline.configuration import ByteSize, ProgramConfig, format_byte_size, load, parse_byte_size
from tierline.errors import ConfigurationError, UsageError


class ToyConfig(ProgramConfig):
    program = "toy"
    flags: ClassVar = {"endpoints": "--endpoint"}

    port: int = Field(default=8000, ge=1, le=65535)
    capacity: ByteSize = 1024
    eviction: Literal["arc", "lru"] = "arc"
    endpoints: list[str] = Field(default=[])


class StrictConfig(ProgramConfig):
    program = "strict"

    model: str = Field(description="a model folder")


def test_flags_beat_the_environment_which_beats_the_file(tmp_path: Path) -> None:
    file = tmp_path / "toy.toml"
    file.write_text('port = 1\ncapacity = "1KiB"\neviction = "lru"\n')
    environment = {"TIERLINE_TOY_PORT": "2", "TIERLINE_TOY_CAPACITY": "2KiB"}
    config = load(ToyConfig, file, {"port": "3"}, environment)
    assert (config.port, config.capacity, config.eviction) == (3, 2048, "lru")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("toy.toml", 'capacity = "2MiB"\nendpoints = ["a", "b"]\n'),
        ("toy.yaml", "capacity: 2MiB\nendpoints: [a, b]\n"),
        ("toy.json", '{"capacity": "2MiB", "endpoints": ["a", "b"]}'),
    ],
)
def test_the_suffix_of_a_file_says_its_format(tmp_path: Path, name: str, text: str) -> None:
    file = tmp_path / name
    file.write_text(text)
    config = load(ToyConfig, file, {}, {})
    assert (config.capacity, config.endpoints) == (2 * 1024**2, ["a", "b"])


def test_a_list_in_the_environment_has_commas() -> None:
    assert load(ToyConfig, None, {}, {"TIERLINE_TOY_ENDPOINTS": "a, b"}).endpoints == ["a", "b"]


def test_a_flag_that_was_not_given_changes_nothing() -> None:
    assert load(ToyConfig, None, {"port": None}, {}).port == 8000


def test_a_wrong_flag_is_named_with_its_value_and_what_is_allowed() -> None:
    with pytest.raises(ConfigurationError, match="--eviction: got 'fifo'; allowed: 'arc' or 'lru'"):
        load(ToyConfig, None, {"eviction": "fifo"}, {})


def test_a_wrong_variable_is_named_as_the_user_wrote_it() -> None:
    with pytest.raises(ConfigurationError, match="TIERLINE_TOY_PORT: got 'tcp'; allowed: a valid integer"):
        load(ToyConfig, None, {}, {"TIERLINE_TOY_PORT": "tcp"})


def test_a_wrong_key_of_a_file_is_named_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "toy.yaml"
    file.write_text("capacity: 5MB\n")
    with pytest.raises(ConfigurationError, match=r"toy.yaml: capacity: got '5MB'; allowed: a size such as 64KiB"):
        load(ToyConfig, file, {}, {})


def test_an_element_of_a_list_is_named_by_its_place() -> None:
    with pytest.raises(ConfigurationError, match=r"--endpoint\[1\]: got 7; allowed: a valid string"):
        load(ToyConfig, None, {"endpoints": ["a", 7]}, {})


def test_an_unknown_key_is_refused_with_the_nearest_known_one(tmp_path: Path) -> None:
    file = tmp_path / "toy.toml"
    file.write_text('evicton = "lru"\n')
    with pytest.raises(ConfigurationError, match=r"toy.toml: evicton: .* did you mean eviction\?"):
        load(ToyConfig, file, {}, {})


def test_a_missing_value_is_named_with_every_way_to_give_it() -> None:
    with pytest.raises(ConfigurationError, match=r"--model: .* a model folder \(also as TIERLINE_STRICT_MODEL or"):
        load(StrictConfig, None, {}, {})


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("toy.toml", "port = ", "toy.toml: Invalid value"),
        ("toy.yaml", "port: [", "toy.yaml: while parsing"),
        ("toy.json", "{", "toy.json: Expecting property name"),
        ("toy.yaml", "[1, 2]", "keys and values at its top level"),
        ("toy.ini", "", "a file that ends in .toml"),
    ],
)
def test_a_file_that_cannot_be_read_costs_one_line(tmp_path: Path, name: str, text: str, complaint: str) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(UsageError, match=complaint) as caught:
        load(ToyConfig, file, {}, {})
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*absent.toml: No such file"):
        load(ToyConfig, tmp_path / "absent.toml", {}, {})


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "toy.yaml"
    file.write_text("# nothing yet\n")
    assert load(ToyConfig, file, {}, {}) == ToyConfig()


def test_making_a_config_in_code_does_not_read_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIERLINE_TOY_PORT", "1")
    monkeypatch.setenv("PORT", "1")
    assert ToyConfig().port == 8000


@pytest.mark.parametrize(
    ("written", "size"),
    [("64KiB", 2**16), ("512MiB", 2**29), ("1GiB", 2**30), ("1.5Gi", 3 * 2**29), ("65536", 2**16), ("7 B", 7), (9, 9)],
)
def test_a_size_is_read_in_binary_units(written: object, size: int) -> None:
    assert parse_byte_size(written) == size


@pytest.mark.parametrize("written", ["1MB", "1G", "-1", -1, "", "MiB", True, 1.5, "1e9", None, "١KiB"])
def test_a_size_that_could_mean_two_things_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match="a size such as"):
        parse_byte_size(written)


@given(st.integers(0, 2**50))
def test_a_printed_size_reads_back_to_four_digits(size: int) -> None:
    assert parse_byte_size(format_byte_size(size)) == pytest.approx(size, rel=1e-3)
