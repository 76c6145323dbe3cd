"""What is kept of every request: times as the client saw them, tokens as the server counts them, how it went wrong.

Times are seconds since the run's start unless a name says otherwise. Nothing of prompts is kept, and nothing of answers
unless it is asked for.
"""

from collections.abc import Sequence

import msgspec

NOT_SENT = "not sent"
"""Of a request that waited for an answer that never came."""


class Record(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One request.

    Parameters
    ----------
    index, family, group, is_cold
        As planned.
    sent_s
        When it was sent.
    queued_s
        How long it had waited for a place, where the number in flight is limited in an open loop.
    late_s
        How much later it was sent than it could have been: the client's own delay; ``None``: nobody knows.
    ttft_s
        From sending to the first event with content; ``None``: there was none.
    latency_s
        From sending to the end of the answer, or to the error.
    gaps_s
        Between events with content, one after the other.
    prompt_tokens, output_tokens
        As ``usage`` says; ``None``: the server does not say.
    cached_tokens
        Of the prompt, those that ``usage`` calls cached; ``None``: the server does not say.
    error
        Its kind, empty for a good answer.
    detail
        What the server or the connection said of it.
    endpoint
        Which endpoint a router of ours sent it to.
    is_simulated
        The answer says that no model made it.
    is_measured
        Whether it counts: not while places are still being opened.
    answer, margins
        Where answers are compared: its tokens, and by how many nats each was ahead of the next best, negative where the
        server does not say.
    text
        Where texts are kept: what the answer said.
    """

    index: int
    family: str
    group: str = ""
    is_cold: bool
    sent_s: float
    latency_s: float
    queued_s: float = 0.0
    late_s: float | None = 0.0
    ttft_s: float | None = None
    gaps_s: Sequence[float] = ()
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    error: str = ""
    detail: str = ""
    endpoint: str = ""
    is_simulated: bool = False
    is_measured: bool = True
    answer: Sequence[str] = ()
    margins: Sequence[float] = ()
    text: str = ""

    @property
    def is_good(self) -> bool:
        """Whether the whole answer came."""
        return not self.error

    @property
    def ended_s(self) -> float:
        """When its answer ended."""
        return self.sent_s + self.latency_s

    @property
    def output(self) -> int:
        """Output tokens; events with content, where the server does not count."""
        return self.output_tokens if self.output_tokens is not None else self.events

    @property
    def events(self) -> int:
        """Events with content."""
        return 0 if self.ttft_s is None else 1 + len(self.gaps_s)

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; ``None`` for answers of one token."""
        if self.ttft_s is None or self.output < 2:
            return None
        return (self.latency_s - self.ttft_s) / (self.output - 1)


class ClientLoad(msgspec.Struct, frozen=True):
    """What a client process was busy with while it made load.

    Parameters
    ----------
    wall_s, cpu_s
        How long it ran, and the processor time it used.
    notices_s
        How long 1 of 100 answers, had they come at any time, would have waited for the process to look: what it is busy
        with itself, and what keeps it from the processor, delays what it measures.
    """

    wall_s: float
    cpu_s: float
    notices_s: float = 0.0

    @property
    def cpu_share(self) -> float:
        """Of one processor, which is all that a client process can use."""
        return self.cpu_s / self.wall_s if self.wall_s else 0.0
