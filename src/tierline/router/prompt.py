"""What a request asks for, decoded once and as far as routing needs; a prompt becomes chained hashes of blocks.

The bytes that are hashed are canonical: they follow the order in which a chat template writes a prompt (tools, then
each message's role and parts), so two requests share leading blocks when their prompts share leading tokens, however
their JSON is written. The hash is XXH3-64, chained by seeding each block with the hash before it: a block's hash names
its whole prefix. A collision costs a wrong guess about a cache, never a wrong answer.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from struct import Struct
from typing import NamedTuple

import msgspec
import xxhash

from tierline.router.http.heads import BadMessage
from tierline.router.http.splicing import UNREADABLE

BLOCK_BYTES = 256
BLOCKS_MAX = 4096
"""Blocks hashed of one prompt, 1 MiB: bounds what one request may cost the event loop and the index."""
OPENING_BLOCKS = 4
"""What a prompt that is no chat counts by as the beginning of a conversation."""
PIECE_CHARACTERS = 64 * 1024
"""Of a prompt, what is encoded and hashed at a time."""
BYTES_PER_TOKEN = 4
"""English text under today's tokenizers; token ids are written as four bytes each, so it is exact for them."""

_BLOCKS = Struct(f"{BLOCK_BYTES}s")
_TEXTS = frozenset({"text", "input_text", "output_text"})
_PART_END, _ROLE_END, _MESSAGE_END, _TOOLS_END = b"\x1d", b"\x1f", b"\x1e", b"\x1c"


class RequestFields(msgspec.Struct, gc=False):
    """The fields of a request's body that routing looks at; all others are skipped unread."""

    model: str | None = None
    cache_salt: str | msgspec.UnsetType | None = msgspec.UNSET
    messages: msgspec.Raw = msgspec.Raw()
    tools: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    system: msgspec.Raw = msgspec.Raw()
    """Of ``/v1/messages``: what stands before its messages."""
    input: msgspec.Raw = msgspec.Raw()
    instructions: msgspec.Raw = msgspec.Raw()
    """Of ``/v1/responses``: the prompt, and what stands before it."""
    priority: msgspec.Raw = msgspec.Raw()
    stream: msgspec.Raw = msgspec.Raw()
    max_tokens: msgspec.Raw = msgspec.Raw()
    max_completion_tokens: msgspec.Raw = msgspec.Raw()
    kv_transfer_params: msgspec.Raw = msgspec.Raw()
    ec_transfer_params: msgspec.Raw = msgspec.Raw()
    """Raw, like all that is the engine's to judge."""


_decode_fields = msgspec.json.Decoder(RequestFields).decode


def read_fields(
    body: bytes | bytearray, decode: Callable[[bytes | bytearray], RequestFields] = _decode_fields
) -> RequestFields:
    """Return what routing needs of a JSON body.

    Parameters
    ----------
    body
        As it came; the fields are views of it.
    decode
        Decodes further fields too.

    Raises
    ------
    BadMessage
        When it is no JSON object, or one of the fields has a wrong type; the message says which.
    """
    try:
        return decode(body)
    except UNREADABLE as error:
        raise BadMessage(400, f"request body: {error}") from None


class HashedPrompt(NamedTuple):
    """A canonical prompt, as far as an index needs it."""

    blocks: list[int]
    """Chained hashes of its whole blocks, :data:`BLOCKS_MAX` at most."""
    whole: int
    """Hash of all of it."""
    size_bytes: int


def hash_blocks(pieces: Iterable[bytes], seed: int) -> HashedPrompt:
    """Hash a prompt that comes in pieces, so that a large one is nowhere as a whole.

    >>> prompt = hash_blocks([b"a" * 500, b"a" * 500], seed=0)
    >>> len(prompt.blocks), prompt.size_bytes
    (3, 1000)
    >>> prompt.blocks[:2] == hash_blocks([b"a" * 512 + b"b" * 512], seed=0).blocks[:2]
    True
    """
    digest = xxhash.xxh3_64_intdigest
    hashes: list[int] = []
    rest, size_bytes, beyond = b"", 0, None
    for piece in _batches(pieces):
        size_bytes += len(piece)
        if beyond is not None:
            beyond.update(piece)
            continue
        data = rest + piece if rest else piece
        whole = min(len(data) // BLOCK_BYTES, BLOCKS_MAX - len(hashes)) * BLOCK_BYTES
        # Unpacking cuts blocks in two thirds of the time that slicing takes.
        hashes += [seed := digest(block, seed) for (block,) in _BLOCKS.iter_unpack(memoryview(data)[:whole])]
        rest = data[whole:]
        if len(hashes) == BLOCKS_MAX:
            beyond = xxhash.xxh3_64(rest, seed)
    return HashedPrompt(hashes, digest(rest, seed) if beyond is None else beyond.intdigest(), size_bytes)


def _batches(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Join what is small: it costs less than to hash it piece by piece."""
    batch: list[bytes] = []
    size_bytes = 0
    for piece in pieces:
        batch.append(piece)
        size_bytes += len(piece)
        if size_bytes >= PIECE_CHARACTERS:
            yield b"".join(batch)
            batch.clear()
            size_bytes = 0
    yield b"".join(batch)


def hash_seed(model: str, cache_salt: str) -> int:
    """Return the seed of a chain. An adapter has a model name of its own, so the model names the adapter too."""
    return xxhash.xxh3_64_intdigest(f"{model}\x1f{cache_salt}".encode())


def canonical_prompt(fields: RequestFields) -> Iterator[bytes]:
    """Return the prompt's bytes in the order of a chat template, in pieces; none when the body holds none that can be
    read.

    A shape that is unknown here is hashed as it was written: it is the engine that judges the request.
    """
    if fields.messages:
        return _canonical_chat(fields, fields.messages, fields.system)
    if fields.prompt:
        return _canonical_completion(fields.prompt)
    if fields.input:
        return _canonical_chat(fields, fields.input, fields.instructions)
    return iter(())


def opening(fields: RequestFields) -> bytes:
    """Return what a conversation begins with: a chat up to its first user's message, of another prompt the first KiB.

    All turns of a conversation have it in common, and conversations that only share a system prompt have not.
    """
    for messages, before in ((fields.messages, fields.system), (fields.input, fields.instructions)):
        if messages:
            return b"".join(_canonical_chat(fields, messages, before, is_opening=True))
    return next(_batches(canonical_prompt(fields)))[: OPENING_BLOCKS * BLOCK_BYTES]


# Chats ----------------------------------------------------------------------------------------------------------------


class _Message(msgspec.Struct, gc=False):
    role: str = ""
    content: str | list[msgspec.Raw] | None = None
    name: str | None = None
    tool_calls: msgspec.Raw = msgspec.Raw()
    tool_call_id: str | None = None


class _Item(_Message, gc=False):
    """Of ``/v1/responses``: a message, a call, or what came of it."""

    arguments: msgspec.Raw = msgspec.Raw()
    output: msgspec.Raw = msgspec.Raw()


class _Link(msgspec.Struct, gc=False):
    url: str


class _Sound(msgspec.Struct, gc=False):
    data: str


class _Part(msgspec.Struct, gc=False):
    type: str = ""
    text: str | None = None
    image_url: _Link | str | None = None
    video_url: _Link | str | None = None
    audio_url: _Link | str | None = None
    input_audio: _Sound | None = None

    def content(self) -> str | None:
        """Return what an image, a film or a recording is, or where; how else it is described changes no token."""
        if self.input_audio is not None:
            return self.input_audio.data
        link = self.image_url or self.video_url or self.audio_url
        url = link.url if isinstance(link, _Link) else link
        if url is not None and url.startswith("data:"):
            return url.partition(",")[2] or url  # the same bytes, whatever they are said to be
        return url


_decode_messages = msgspec.json.Decoder(list[_Message]).decode
_decode_input = msgspec.json.Decoder(str | list[_Item]).decode
_decode_content = msgspec.json.Decoder(str | list[msgspec.Raw] | None).decode
_decode_part = msgspec.json.Decoder(_Part).decode


def _canonical_chat(
    fields: RequestFields, raw: msgspec.Raw, before: msgspec.Raw, *, is_opening: bool = False
) -> Iterator[bytes]:
    """Yield a chat; ``before`` is a system prompt that its API has in a field of its own.

    Its opening has no tools, and ends with the first user's message.
    """
    if fields.tools and not is_opening:
        yield _without_blanks(fields.tools) + _TOOLS_END
    try:
        messages: str | Sequence[_Message] = _decode_input(raw) if raw is fields.input else _decode_messages(raw)
        system = _decode_content(before) if before else None
    except UNREADABLE:
        yield bytes(before) + bytes(raw)
        return
    if isinstance(messages, str):
        messages = [_Message("user", messages)]
    if system is not None:
        messages = [_Message("system", system), *messages]
    for message in messages:
        yield message.role.encode() + _ROLE_END
        if isinstance(message.content, str):
            yield from _slices(message.content)
        else:
            for part in message.content or ():
                yield _canonical_part(part) + _PART_END
        if message.tool_calls:
            yield _without_blanks(message.tool_calls)
        if isinstance(message, _Item):
            yield b"".join(_without_blanks(said) for said in (message.arguments, message.output) if said)
        for extra in (message.name, message.tool_call_id):
            if extra is not None:
                yield _PART_END + _utf8(extra)
        yield _MESSAGE_END
        if is_opening and message.role == "user":
            return


def _canonical_part(raw: msgspec.Raw) -> bytes:
    """Text as it is; images, films and sound by the hash of their content, or of their URL; the unknown as written."""
    try:
        part = _decode_part(raw)
    except UNREADABLE:
        return xxhash.xxh3_128_digest(_without_blanks(raw))
    if part.type in _TEXTS and part.text is not None:
        return _utf8(part.text)
    content = part.content()
    if content is None:
        return xxhash.xxh3_128_digest(_without_blanks(raw))
    return part.type.encode() + xxhash.xxh3_128_digest(_utf8(content))


def _without_blanks(raw: msgspec.Raw) -> bytes:
    try:
        return msgspec.json.format(bytes(raw), indent=-1)
    except RecursionError:
        return bytes(raw)


def _slices(text: str) -> Iterator[bytes]:
    """Yield a text's bytes, a part of it at a time."""
    for start in range(0, len(text), PIECE_CHARACTERS):
        yield _utf8(text[start : start + PIECE_CHARACTERS])


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


# Completions ----------------------------------------------------------------------------------------------------------

_decode_prompt = msgspec.json.Decoder(str | list[str | int | list[int]]).decode


def _canonical_completion(raw: msgspec.Raw) -> Iterator[bytes]:
    try:
        prompt = _decode_prompt(raw)
    except UNREADABLE:
        yield bytes(raw)
        return
    if isinstance(prompt, str):
        yield from _slices(prompt)
        return
    ids: list[int] = []
    for item in prompt:
        if isinstance(item, int):
            ids.append(item)
        else:
            yield (_utf8(item) if isinstance(item, str) else _token_bytes(item)) + _MESSAGE_END
    yield _token_bytes(ids)


def _token_bytes(ids: list[int]) -> bytes:
    try:
        return array("I", ids).tobytes()
    except OverflowError:  # no token id; the engine will say so
        return repr(ids).encode()
