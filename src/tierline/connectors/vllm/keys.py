"""The keys of a request's chunks: `tierline.prefix` applied to what vLLM knows about a request.

Keys are computed from the start of the prompt, as far as they are asked for, and remembered. The lookup thread asks
first, so a long prompt is hashed there and not on the scheduler's thread (2 ms for 64K tokens).
"""

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tierline.prefix import CHUNK_TOKENS, block_chain, tenant_field

if TYPE_CHECKING:
    from vllm.v1.request import Request


class RequestKeys:
    """The growing chain of one request; thread-safe.

    Parameters
    ----------
    root
        Root of the request's identity: model, adapter, tenant, epoch.
    request
        Its tokens only ever grow.

    Attributes
    ----------
    tenant
        The last field of the names of the request's objects.
    """

    def __init__(self, root: bytes, request: "Request") -> None:
        self.tenant = tenant_field(request.cache_salt or "")
        self._request = request
        self._extras = media_by_chunk(request)
        self._lock = threading.Lock()
        self._last = root
        self._chains: list[bytes] = []

    def leading(self, chunks: int) -> Sequence[bytes]:
        """Return the keys of the first ``chunks`` chunks; the request must have that many tokens."""
        with self._lock:
            known = len(self._chains)
            if chunks > known:
                tokens = self._request.all_token_ids[known * CHUNK_TOKENS : chunks * CHUNK_TOKENS]
                extras = {index - known: extra for index, extra in self._extras.items() if index >= known}
                self._chains.extend(block_chain(self._last, tokens, extras=extras))
                self._last = self._chains[-1]
            return self._chains[:chunks]


def media_by_chunk(request: "Request") -> Mapping[int, bytes]:
    """Return for each chunk with placeholders of images and the like: whose content they stand for, and where.

    Contents go by vLLM's own identifier of them, which it trusts for its own prefix cache too.
    """
    entries: dict[int, list[str]] = defaultdict(list)
    for feature in request.mm_features:
        start, length = feature.mm_position.offset, feature.mm_position.length
        for chunk in range(start // CHUNK_TOKENS, (start + length - 1) // CHUNK_TOKENS + 1):
            entries[chunk].append(f"{feature.modality}:{feature.identifier}:{start - chunk * CHUNK_TOKENS}:{length}")
    return {chunk: "\0".join(texts).encode() for chunk, texts in entries.items()}
