"""A prompt computed by one endpoint for another that only decodes: when, and what each of the two is sent.

The rule: **what pays is decided by what is still to be computed**. A prompt goes to a prefill endpoint when the decode
endpoint would have to compute a threshold of tokens or more; what it has cached, it need not be given. The two are
introduced to each other by vLLM's ``kv_transfer_params``: the prefill endpoint's answer says where the KV is, the
decode endpoint's request repeats it. An answer without them is as good where both share a store.

And: **KV is handed only between endpoints of the same weights**. That of others would be decoded into wrong tokens,
and nobody would notice. Whoever is about to hand some asks :func:`is_of` once more, for pods come and go meanwhile.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from tierline.router.endpoints import Endpoint
from tierline.router.http.splicing import UNREADABLE, Members, Piece, members_of, object_of
from tierline.router.strategies.base import Decision, RoutingRequest

PATHS = frozenset({b"/v1/chat/completions", b"/v1/completions"})
ANSWER_BYTES = 4 * 1024**2
"""Most of a prefill endpoint's answer: vLLM names each block of the prompt in it, 8 bytes for 16 tokens or so."""
X_TIERLINE_WEIGHTS = b"x-tierline-weights"
"""What the KV is of that a request has computed, or hands over. A pod that has the address of another by now, of which
the router does not know yet, answers :data:`NOT_ITS_WEIGHTS`."""
NOT_ITS_WEIGHTS = 412
OTHER_WEIGHTS = "weights"
"""Why nobody computed a prompt: those that could are of other weights, or have become so."""

_HANDSHAKE = "kv_transfer_params"
_TO_PREFILL = msgspec.json.encode(
    {
        "do_remote_decode": True,
        "do_remote_prefill": False,
        "remote_engine_id": None,
        "remote_block_ids": None,
        "remote_host": None,
        "remote_port": None,
    }
)
_LEFT_OUT = ("stream_options", "min_tokens", "return_token_ids")
"""Refused without ``stream``; refused when above ``max_tokens``; would send the whole prompt back."""
_OFF = (b"null", b"false")
_ALONE = {
    _HANDSHAKE: _OFF,
    "n": (*_OFF, b"1"),
    "best_of": (*_OFF, b"1"),
    "use_beam_search": _OFF,
    "echo": _OFF,
    "prompt_logprobs": _OFF,
    "prompt_embeds": _OFF,
}
"""Members that, with any other value than these, make one endpoint serve the request alone. The client shakes hands by
itself; several samples would each fetch KV that is handed out once; logits of the prompt are there only where it is
computed, as ``echo`` with ``logprobs`` asks for them; embeddings are no tokens."""


class Pairing(NamedTuple):
    """What became of the question whether a prompt should be computed elsewhere."""

    outcome: str
    """``paired``; ``short``: too little is to be computed; ``unsuited``: the request is of a kind that one endpoint
    serves alone; ``fallback``: no prefill endpoint did it."""
    why: str = ""
    """The member that is unsuited, or ``body``; why nobody did it."""
    prefill: Decision | None = None
    """The prefill endpoint that computed it, or was tried last."""
    seconds: float = 0.0
    """From its first request to its answer."""

    @property
    def text(self) -> str:
        """Outcome and reason in one."""
        return f"{self.outcome}: {self.why}" if self.why else self.outcome


def split(
    request: RoutingRequest, decision: Decision, body: bytes, threshold: int
) -> Pairing | dict[str, msgspec.Raw] | None:
    """Return the members of ``body`` where a prefill endpoint should compute the prompt, else why none should.

    Parameters
    ----------
    request, decision
        What was decided, and of what.
    body
        A JSON object.
    threshold
        Tokens to compute from which it pays.

    Returns
    -------
    Pairing, dict or None
        ``None`` where it is no question: the endpoint computes prompts itself, or there is none.
    """
    if "prefill" in decision.endpoint.roles or not request.has_prompt:
        return None
    if _tokens_to_compute(request, decision) < threshold:
        return Pairing("short")
    try:
        members = members_of(body)
    except UNREADABLE:  # only the engine can tell what it is to it
        return Pairing("unsuited", "body")
    why = _unsuited(members)
    return Pairing("unsuited", why) if why else members


def partners(endpoints: Sequence[Endpoint], weights: str | None) -> list[Endpoint]:
    """Return the endpoints whose KV one of ``weights`` may take over."""
    return [endpoint for endpoint in endpoints if is_of(endpoint, weights)]


def is_of(endpoint: Endpoint, weights: str | None) -> bool:
    """Whether the KV that an endpoint computes and takes over is of ``weights``, as far as is known at this moment.

    Where nothing is said of two endpoints, whoever lists them vouches for them. Where something is said of one of them
    only, there is a doubt, and they are kept apart.
    """
    return endpoint.weights == weights


def _tokens_to_compute(request: RoutingRequest, decision: Decision) -> int:
    """Return how many tokens of the prompt its decode endpoint would have to compute, as far as its strategy knows."""
    if decision.total_blocks:
        return decision.uncached_tokens
    return request.prompt_tokens if request.blocks else 0


def _unsuited(members: Mapping[str, msgspec.Raw]) -> str:
    """Return the member for whose sake one endpoint should serve a request alone; empty where there is none."""
    for name, usual in _ALONE.items():
        value = members.get(name)
        if value is not None and bytes(value) not in usual:
            return name
    return "prompt" if _holds_several(bytes(members.get("prompt", b""))) else ""


def prefill_body(members: Mapping[str, msgspec.Raw]) -> tuple[Piece, ...]:
    """Return the body that makes an endpoint compute the prompt, and one token, for another."""
    kept: dict[str, msgspec.Raw | bytes] = {**members}
    for name in _LEFT_OUT:
        kept.pop(name, None)
    kept |= {"max_tokens": b"1", "stream": b"false", _HANDSHAKE: _TO_PREFILL}
    if "max_completion_tokens" in kept:
        kept["max_completion_tokens"] = b"1"
    return object_of(kept)


def decode_body(members: Members, handed: bytes) -> tuple[Piece, ...]:
    """Return the body that makes an endpoint take over what another computed.

    Parameters
    ----------
    members
        Of the client's request.
    handed
        The prefill endpoint's ``kv_transfer_params``.
    """
    return object_of({**members, _HANDSHAKE: handed})


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens_details: _Details | None = None


class PrefillAnswer(msgspec.Struct):
    """What counts of a prefill endpoint's answer."""

    kv_transfer_params: msgspec.Raw = msgspec.Raw(b"null")
    usage: _Usage | None = None

    @property
    def handed(self) -> bytes:
        """What the decode endpoint is to be given; empty where the two need no introduction."""
        params = bytes(self.kv_transfer_params)
        return b"" if params in (b"null", b"{}") else params

    @property
    def cached_tokens(self) -> int | None:
        """Tokens of the prompt that the prefill endpoint had in a cache, where it says so."""
        details = self.usage.prompt_tokens_details if self.usage is not None else None
        return details.cached_tokens if details is not None else None


_decode_answer = msgspec.json.Decoder(PrefillAnswer).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


def read_answer(body: bytes) -> PrefillAnswer | None:
    """Return a prefill endpoint's answer; ``None`` where it is none."""
    try:
        return _decode_answer(body)
    except UNREADABLE:
        return None


def _holds_several(prompt: bytes) -> bool:
    """Whether a completion's prompt is several: a list of texts, or of lists of token ids."""
    if prompt[:1] != b"[" or prompt[1:].lstrip()[:1] not in (b'"', b"["):
        return False
    return len(_decode_list(prompt)) > 1
