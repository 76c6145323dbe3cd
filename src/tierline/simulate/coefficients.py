"""Coefficient files: how fast one engine is, of which model on which hardware, where that is known from, how well.

A file is YAML or JSON. Those that come along are named without a suffix. A file that keeps the observations which its
coefficients were fitted to says with every result how far they are from each other.
"""

import datetime as dt
import statistics
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tierline.bench.engine_model import EngineModel
from tierline.errors import ConfigurationError, UsageError
from tierline.loading import PrefillCost
from tierline.simulate.fitting import Decode, DecodeSeen, Prefill, PrefillSeen

SCHEMA: Literal["tierline-coefficients/1"] = "tierline-coefficients/1"
_FOLDER = "tierline.simulate.coefficient_files"
_SUFFIXES = (".yaml", ".yml", ".json")

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Deviation = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PrefillCoefficients(_Part):
    """As of :class:`~tierline.simulate.fitting.Prefill`."""

    first_s: Seconds
    token_s: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    attention_s: Seconds


class DecodeCoefficients(_Part):
    """As of :class:`~tierline.simulate.fitting.Decode`."""

    step_s: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    sequence_s: Seconds
    context_s: Seconds


class Observations(_Part):
    """What the coefficients are held against: new tokens, cached ones, seconds; sequences, their tokens, seconds."""

    prefill: tuple[tuple[Count, Annotated[int, Field(ge=0)], Seconds], ...] = ()
    decode: tuple[tuple[Count, Annotated[int, Field(ge=0)], Seconds], ...] = ()


class Accuracy(BaseModel):
    """How far coefficients are from what was observed, in percent of it; ``None`` where nothing was."""

    prefill_median: float | None
    prefill_most: float | None
    decode_median: float | None
    decode_most: float | None

    def __str__(self) -> str:
        if self.prefill_median is None and self.decode_median is None:
            return "not known: the file keeps no observations"
        parts = [
            f"{what} {median:.1f} % from what was observed (median; {most:.1f} % at most)"
            for what, median, most in (
                ("prefill", self.prefill_median, self.prefill_most),
                ("decode", self.decode_median, self.decode_most),
            )
            if median is not None
        ]
        return ", ".join(parts)


class Validation(_Part):
    """How far simulations with these coefficients were from what a real endpoint did under the same load.

    Parameters
    ----------
    workload
        In words; the calibration did not have it.
    ttft_p50_percent, ttft_p90_percent, throughput_percent
        How much above the measured figure the simulated one was, or below it.
    hit_rate_points
        The same of the share of prompt tokens that were cached; ``None``: the endpoint does not say.
    """

    date: dt.date
    workload: Text
    ttft_p50_percent: Deviation
    ttft_p90_percent: Deviation
    throughput_percent: Deviation
    hit_rate_points: Deviation | None = None

    def __str__(self) -> str:
        hits = "" if self.hit_rate_points is None else f", cached tokens {self.hit_rate_points:+.1f} points"
        return (
            f"{self.date}, simulated against measured: TTFT P50 {self.ttft_p50_percent:+.1f} %, P90 "
            f"{self.ttft_p90_percent:+.1f} %, output tokens/s {self.throughput_percent:+.1f} %{hits} ({self.workload})"
        )


class Coefficients(_Part):
    """One engine: a replica, of however many accelerators.

    Parameters
    ----------
    model, hardware, engine
        What it is about.
    source, date
        Who measured, how and when; ``date`` is ISO 8601.
    kv_bytes_per_token
        Of all accelerators together: 2 · layers · KV heads · head size · bytes of a number.
    kv_tokens
        Room of the engine's own cache.
    step_tokens, sequences
        What a step computes at most of prompts and answers, and of how many requests at once.
    """

    schema_: Literal["tierline-coefficients/1"] = Field(alias="schema")
    model: Text
    hardware: Text
    engine: Text
    source: Text
    date: dt.date
    kv_bytes_per_token: Count
    kv_tokens: Annotated[int, Field(ge=1024)]
    step_tokens: Count = 8192
    sequences: Count = 256
    prefill: PrefillCoefficients
    decode: DecodeCoefficients
    observations: Observations = Observations()
    validation: Validation | None = None

    @property
    def accuracy(self) -> Accuracy:
        """How far these are from the observations."""
        prefill, decode = Prefill(**dict(self.prefill)), Decode(**dict(self.decode))
        prefills = [PrefillSeen(*each) for each in self.observations.prefill]
        decodes = [DecodeSeen(*each) for each in self.observations.decode]
        of_prefill = [100 * abs(prefill.seconds(each.tokens, each.cached) / each.seconds - 1) for each in prefills]
        of_decode = [100 * abs(decode.seconds(each.sequences, each.context) / each.seconds - 1) for each in decodes]
        return Accuracy(
            prefill_median=statistics.median(of_prefill) if of_prefill else None,
            prefill_most=max(of_prefill, default=None),
            decode_median=statistics.median(of_decode) if of_decode else None,
            decode_most=max(of_decode, default=None),
        )

    @property
    def request_s(self) -> float:
        """What a request takes beside its steps: its first token takes longer than the least that a step can take."""
        return max(0.0, self.prefill.first_s - self.decode.step_s)

    @property
    def prefill_cost(self) -> PrefillCost:
        """What computing takes, a token."""
        return PrefillCost(self.prefill.token_s, self.prefill.attention_s)

    def engine_model(self) -> EngineModel:
        """Return the engine that takes these times.

        The lesser of what a first token and what a decoding step takes at least is of every step; what a decoding step
        takes beyond that is of those that decode.
        """
        step_s = min(self.prefill.first_s, self.decode.step_s)
        return EngineModel(
            prefill_tokens_per_s=1 / self.prefill.token_s,
            attention_s=self.prefill.attention_s,
            step_s=step_s,
            decode_step_s=self.decode.step_s - step_s,
            sequence_s=self.decode.sequence_s,
            context_s=self.decode.context_s,
            step_tokens=self.step_tokens,
            sequences=self.sequences,
            prompts_a_step=self.sequences,
        )


def provenance(place: str, known: Coefficients) -> dict[str, str]:
    """Return what every result says of its coefficients: the file, where its figures are from, how far they are off."""
    validation = "never: queueing, hits and tails were not held against a real endpoint"
    return {
        "file": place,
        "model": known.model,
        "hardware": known.hardware,
        "engine": known.engine,
        "source": " ".join(known.source.split()),
        "date": known.date.isoformat(),
        "fit": str(known.accuracy),
        "validation": validation if known.validation is None else str(known.validation),
    }


def without_attention(known: Coefficients) -> Coefficients:
    """Return an engine that is as fast, but for attending, which takes no time when it computes prompts."""
    return known.model_copy(update={"prefill": known.prefill.model_copy(update={"attention_s": 0.0})})


def shipped() -> list[str]:
    """Return the names of the files that come along."""
    return sorted(entry.name.removesuffix(".yaml") for entry in files(_FOLDER).iterdir() if entry.name[0] != "_")


def read(place: str) -> Coefficients:
    """Return the coefficients of a file, or of one that comes along.

    Raises
    ------
    UsageError
        It cannot be read.
    ConfigurationError
        A value is not allowed; the message names file and key.
    """
    if place in shipped():
        return parse(files(_FOLDER).joinpath(f"{place}.yaml").read_text(), place)
    path = Path(place)
    if path.suffix not in _SUFFIXES:
        raise ConfigurationError(
            "--coefficients", place, f"{', '.join(shipped())}, or a file that ends in .yaml or .json"
        )
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--coefficients: cannot read {place}: {error}") from error
    return parse(text, place)


def parse(text: str, where: str) -> Coefficients:
    """Return the coefficients that a YAML or JSON document says; raises as :func:`read` does."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{where}: expected keys and values, as docs/simulate.md describes them")
    try:
        return Coefficients.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        if problem["type"] == "missing":
            raise ConfigurationError(f"{where}: {key}", None, "a value, for there is no default") from None
        if problem["type"] == "extra_forbidden":
            known = ", ".join(field.alias or name for name, field in Coefficients.model_fields.items())
            raise ConfigurationError(f"{where}: {key}", problem["input"], f"the keys {known}") from None
        allowed = problem["msg"].removeprefix("Input should be ")
        raise ConfigurationError(f"{where}: {key}", problem["input"], allowed) from None


def check_place(flag: str, path: Path) -> None:
    """Raise :class:`ConfigurationError` where :func:`write` would not know what to write."""
    if path.suffix not in _SUFFIXES:
        raise ConfigurationError(flag, str(path), f"a file that ends in {', '.join(_SUFFIXES)}")


def write(coefficients: Coefficients, path: Path) -> None:
    """Write a file that :func:`read` reads."""
    content = coefficients.model_dump(mode="json", by_alias=True, exclude_none=True)
    try:
        if path.suffix == ".json":
            path.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")
        else:
            path.write_text(
                yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
            )
    except OSError as error:
        raise UsageError(f"--output: cannot write {path}: {error.strerror}") from error
