"""What servers of the OpenAI API answer, as far as our clients read it; what else an answer has is skipped."""

from collections.abc import Sequence
from typing import Any

import msgspec


class Model(msgspec.Struct):
    """One of a server's models."""

    id: str


class Models(msgspec.Struct):
    """The answer of ``/v1/models``."""

    data: Sequence[Model]


class PromptDetails(msgspec.Struct):
    """Of a prompt's tokens, those that were in a cache."""

    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    """Tokens as the server counts them; ``None`` where it does not say."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None

    @property
    def cached_tokens(self) -> int | None:
        """Of the prompt, those that were in a cache."""
        return None if self.prompt_tokens_details is None else self.prompt_tokens_details.cached_tokens


class Delta(msgspec.Struct):
    """What an event adds to a message; servers call what a model thinks by two names."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class Choice(msgspec.Struct):
    """What an event adds to an answer: of a chat a delta, of a completion text."""

    delta: Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: Any = None

    @property
    def said(self) -> str:
        """Text of the answer."""
        return (self.text if self.delta is None else self.delta.content) or ""

    @property
    def content(self) -> str:
        """Text of the answer, or of what comes before it where a model reasons."""
        if self.said or self.delta is None:
            return self.said
        return self.delta.reasoning_content or self.delta.reasoning or ""


class Event(msgspec.Struct):
    """An event of a stream."""

    choices: Sequence[Choice] = ()
    usage: Usage | None = None
    error: Any = None

    @property
    def failure(self) -> str:
        """What the server says went wrong; empty where nothing did."""
        if isinstance(self.error, dict) and "message" in self.error:
            return str(self.error["message"])
        return "" if self.error is None else str(self.error)


read_event = msgspec.json.Decoder(Event).decode
"""Reads an event's JSON; raises :class:`msgspec.DecodeError` where it is none."""
