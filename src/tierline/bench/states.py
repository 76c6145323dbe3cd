"""Answers to requests, sorted by where each found its document's KV, and the rows, comparisons and table they make.

Two answers are compared only when they answer the same prompt. The node store is held against the engine's own prefix
hit where both had the same number of cached tokens: then both computed the same rest, from KV that must be the same.
Held against cold it must agree to within rounding, which is something to ask for in float32 only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tierline.bench.chat import Answer
from tierline.bench.report import Bar, Chart, Table, figure_text, goal_text
from tierline.bench.rows import NO_TOKENS, Limit, Row, TokenSplit, at_least, at_most, not_measured, percentile

WANTED_SPEEDUP = 10.0
ROUNDING_IN_FLOAT32 = 1e-3
"""By how much log probabilities may differ where attention over a cached prefix sums in another order."""

COLD = "cold"
SAME_REPLICA = "warm, same replica"
OTHER_REPLICA = "warm, other replica"
EMPTIED = "warm, engine's cache emptied"
RESTARTED = "warm, after a restart"

STAYED = "later questions that went to the replica asked before"
SPEEDUP = "cold over warm on the other replica"
EQUAL_TO_OWN_HIT = "answers equal: node store and the engine's own prefix hit of the same length"
LOGPROB_DIFFERENCE = "largest difference of log probabilities: node store and the engine's own prefix hit"
EQUAL_TO_COLD = "answers equal: node store and cold"
LOGPROB_DIFFERENCE_TO_COLD = "largest difference of log probabilities: node store and cold"

_FROM_THE_STORE = (OTHER_REPLICA, EMPTIED, RESTARTED)


@dataclass
class State:
    """Answers to requests that found the document's KV in the same place, by their prompts."""

    name: str
    answers: dict[str, Answer] = field(default_factory=dict)
    split: TokenSplit = NO_TOKENS

    @property
    def n(self) -> int:
        """Number of requests."""
        return len(self.answers)

    def add(self, prompt: str, answer: Answer, split: TokenSplit) -> None:
        """Book an answer and who answered its prompt's tokens."""
        self.answers[prompt] = answer
        self.split += split

    def ttft(self, percent: float) -> float:
        """Return a percentile of the time to first token."""
        return percentile([answer.ttft_s for answer in self.answers.values()], percent)

    def tokens_per_second(self) -> float:
        """Return output tokens over the time of whole requests."""
        tokens = sum(len(answer.tokens) for answer in self.answers.values())
        return tokens / sum(answer.duration_s for answer in self.answers.values())


class States:
    """States in the order in which they were met, and why others could not be measured.

    Parameters
    ----------
    label
        Begins every name: says where engines are simulated, and is empty otherwise.
    in_float32
        Whether the engines compute in float32, so that warm answers have to agree with cold ones.
    """

    def __init__(self, label: str = "", *, in_float32: bool = False) -> None:
        self.label = label
        self.in_float32 = in_float32
        self._states: dict[str, State] = {}
        self._missing: dict[str, str] = {}
        self._routed: dict[str, list[bool]] = {}

    def __getitem__(self, name: str) -> State:
        return self._states.setdefault(name, State(f"{self.label}{name}"))

    def __iter__(self) -> Iterator[State]:
        return iter(self._states.values())

    def cannot(self, name: str, reason: str) -> None:
        """Say why a state was not measured."""
        self._missing[f"{self.label}{name}"] = reason

    def routed(self, name: str, *, to_the_same: bool) -> None:
        """Count a later question that went to the replica that was asked about the document before, or did not."""
        self._routed.setdefault(f"{self.label}{name}: {STAYED}", []).append(to_the_same)

    def reasons(self) -> list[str]:
        """Return why states are missing, as notes."""
        return [f"{name}: not measured: {reason}" for name, reason in self._missing.items()]

    def rows(self) -> list[Row]:
        """Return every state's figures, the speed-up that is wanted, and what comparing the answers found."""
        cold = self[COLD].ttft(50)
        rows = []
        for state in self:
            limit = None if state is self[COLD] else Limit(f"{self.label}TTFT P50, {COLD}", cold)
            rows.append(Row(f"TTFT P50, {state.name}", state.ttft(50), "s", limit, state.n, split=state.split))
            rows.append(Row(f"TTFT P90, {state.name}", state.ttft(90), "s", n=state.n, split=state.split))
            rows.append(Row(f"output rate, {state.name}", state.tokens_per_second(), "tokens/s", n=state.n))
        rows += [Row(name, sum(stayed) / len(stayed), "share", n=len(stayed)) for name, stayed in self._routed.items()]
        rows += [not_measured(f"TTFT P50, {name}", "s", reason) for name, reason in self._missing.items()]
        rows.append(
            Row(
                f"{self.label}{SPEEDUP}",
                cold / self[OTHER_REPLICA].ttft(50),
                "×",
                at_least(WANTED_SPEEDUP),
                self[OTHER_REPLICA].n,
                "cold TTFT P50 over TTFT P50 on the replica that did not compute the prefix, same run",
            )
        )
        return rows + self._compared_with_own_hits() + self._compared_with_cold()

    def table(self, rows: Sequence[Row]) -> Table:
        """Lay out the states, and below them the rows that have a goal."""
        cold = self[COLD].ttft(50)
        lines = [(*_measured_cells(state, cold), *_split_cells(state.split)) for state in self]
        lines += [(name, "–", *[""] * 8) for name in self._missing]
        lines += [
            (row.name, str(row.n), figure_text(row.value), "", goal_text(row), *[""] * 5)
            for row in rows
            if row.is_met is not None
        ]
        header = (
            "request",
            "n",
            "TTFT P50 s",
            "P90 s",
            "vs cold",
            "tokens/s",
            "engine",
            "store",
            "other node",
            "computed",
        )
        return Table("Time to first token, and who had the prompt's tokens", header, lines)

    def chart(self) -> Chart:
        """Draw every state's time to first token."""
        bars = [Bar(f"{state.name} (n={state.n})", state.ttft(50), upper=state.ttft(90)) for state in self]
        return Chart("Time to first token: P50, whisker to P90", "seconds, logarithmic", bars, is_logarithmic=True)

    def _compared_with_own_hits(self) -> list[Row]:
        pairs = [
            (own, answer) for own, answer in self._pairs_with(SAME_REPLICA) if own.cached_tokens == answer.cached_tokens
        ]
        names = (f"{self.label}{EQUAL_TO_OWN_HIT}", f"{self.label}{LOGPROB_DIFFERENCE}")
        if not pairs:
            return _not_compared(names, "no two such requests had the same number of cached tokens")
        return _compared(names, pairs, (at_least(1.0), at_most(0.0)), "0 means bit-equal")

    def _compared_with_cold(self) -> list[Row]:
        pairs = [(cold, answer) for cold, answer in self._pairs_with(COLD) if answer.cached_tokens]
        names = (f"{self.label}{EQUAL_TO_COLD}", f"{self.label}{LOGPROB_DIFFERENCE_TO_COLD}")
        if not pairs:
            return _not_compared(names, "no request that reads the node store had cached tokens")
        if self.in_float32:
            return _compared(names, pairs, (at_least(1.0), at_most(ROUNDING_IN_FLOAT32)), "computed in float32")
        note = (
            "no goal outside float32: in bfloat16 an engine's own prefix hit differs from cold as well, "
            "see docs/benchmarks.md"
        )
        return _compared(names, pairs, (None, None), note)

    def _pairs_with(self, reference: str) -> Iterator[tuple[Answer, Answer]]:
        """Yield what the reference answered to a prompt, and what a state that reads the node store did."""
        for name in _FROM_THE_STORE:
            for prompt, answer in self[name].answers.items() if name in self._states else ():
                yield self[reference].answers[prompt], answer


def _compared(
    names: tuple[str, str],
    pairs: Sequence[tuple[Answer, Answer]],
    limits: tuple[Limit | None, Limit | None],
    note: str,
) -> list[Row]:
    """Return the share of pairs that are equal, and the largest difference of their log probabilities."""
    share = sum(_are_equal(one, other) for one, other in pairs) / len(pairs)
    equal = Row(names[0], share, "share", limits[0], len(pairs), note)
    if any(len(one.logprobs) != len(other.logprobs) for one, other in pairs):
        return [equal, not_measured(names[1], "nats", "answers have different numbers of log probabilities")]
    differences = [
        abs(theirs - ours) for one, other in pairs for theirs, ours in zip(one.logprobs, other.logprobs, strict=True)
    ]
    if not differences:
        return [equal, not_measured(names[1], "nats", "the engine tells no log probabilities")]
    return [equal, Row(names[1], max(differences), "nats", limits[1], len(differences), note)]


def _not_compared(names: tuple[str, str], reason: str) -> list[Row]:
    return [not_measured(name, unit, reason) for name, unit in zip(names, ("share", "nats"), strict=True)]


def _are_equal(one: Answer, other: Answer) -> bool:
    """Whether all tokens are the same; answers that differ in length, or in what has log probabilities, are not."""
    return one.tokens == other.tokens and len(one.logprobs) == len(other.logprobs)


def _measured_cells(state: State, cold: float) -> tuple[str, ...]:
    return (
        state.name,
        str(state.n),
        figure_text(state.ttft(50)),
        figure_text(state.ttft(90)),
        f"÷ {cold / state.ttft(50):.1f}",
        figure_text(state.tokens_per_second()),
    )


def _split_cells(split: TokenSplit) -> tuple[str, ...]:
    shares = (split.engine_cache, split.node_store, split.other_node, split.computed)
    return tuple(f"{100 * tokens / (split.total or 1):.1f} %" for tokens in shares)
