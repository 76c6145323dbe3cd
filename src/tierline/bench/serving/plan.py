"""What a run asks for, before anything is asked: requests in order, who waits for whose answer, what is shared.

Prompts are recipes, so a plan of many long prompts is small; they are written just before they are sent.
"""

from collections.abc import Sequence

import msgspec

from tierline.bench.serving.text import MARK_TOKENS, Lengths, Piece, write

MORE_THAN_HALF = 0.5


class Message(msgspec.Struct, frozen=True, array_like=True):
    """A message of a chat: who speaks, and what it is made of."""

    role: str
    pieces: tuple[Piece, ...]

    @property
    def tokens(self) -> int:
        """Its planned length."""
        return sum(piece.tokens for piece in self.pieces)


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """A request that will be sent.

    Parameters
    ----------
    index
        Its place in the plan.
    family
        Requests of one family share a prefix, those of two share none; what was interrupted is repeated by families.
    group
        What results are told apart by beside cold and warm; empty in most workloads.
    messages
        What it adds to what was said before.
    output_tokens
        Length of its answer.
    after
        The request whose answer must be there first; ``None``: it waits for none.
    goes_on
        What was said in the request before, and what that answered, comes before its own messages.
    input_tokens
        Planned length of the whole prompt.
    known_tokens
        Of these, how many leading ones an earlier request of the plan has had.
    at_s
        When it comes, in an open loop.
    """

    index: int
    family: str
    messages: tuple[Message, ...]
    output_tokens: int
    input_tokens: int
    known_tokens: int = 0
    group: str = ""
    after: int | None = None
    goes_on: bool = False
    at_s: float | None = None

    @property
    def is_cold(self) -> bool:
        """Whether most of its prompt is new: then no cache can save much."""
        return self.known_tokens <= MORE_THAN_HALF * self.input_tokens


def write_messages(planned: Planned, salt: str, lengths: Lengths) -> list[dict[str, str]]:
    """Return what a request adds, as the API wants it.

    What the server's chat template adds is taken off the first pieces, so that the prompt has its planned length. Where
    two prompts begin alike it is taken off alike, so what they share they share still.
    """
    template = lengths.turn if planned.goes_on else lengths.opening
    written = []
    for message in planned.messages:
        pieces, template = _shortened(message.pieces, template)
        written.append({"role": message.role, "content": _joined(pieces, salt, lengths.per_word)})
    return written


def _shortened(pieces: Sequence[Piece], by: int) -> tuple[list[Piece], int]:
    """Return pieces that are shorter by so much in all, as far as each keeps its mark, and what could not be taken."""
    shorter = []
    for piece in pieces:
        taken = min(by, max(0, piece.tokens - MARK_TOKENS))
        by -= taken
        shorter.append(Piece(piece.kind, piece.seed, piece.tokens - taken))
    return shorter, by


def _joined(pieces: Sequence[Piece], salt: str, tokens_per_word: float) -> str:
    """Return the text of pieces; those that read alike are one paragraph, for what parts them would be tokens too."""
    text, kind = "", None
    for piece in pieces:
        text += ("" if kind is None else " " if piece.kind == kind else "\n\n") + write(piece, salt, tokens_per_word)
        kind = piece.kind
    return text
