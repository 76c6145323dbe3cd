"""A model's tokenizer and chat template, as far as they can be had without the engine. Slow: for a thread.

A folder of the Hub's layout: ``tokenizer.json``; the template in ``chat_template.jinja`` or ``tokenizer_config.json``.
Templates are the model publisher's code and run in Jinja's sandbox, set up as ``transformers`` does it.
"""

import json
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tierline.errors import UsageError
from tierline.router.beginnings import Beginnings
from tierline.router.events.keys import token_bytes

if TYPE_CHECKING:
    import jinja2


class PlainMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A message without parts, tool calls or a name."""

    role: str
    content: str


Chat = list[PlainMessage]


class LocalTokenizer:
    """Turns prompts into tokens.

    Raises
    ------
    UsageError
        When the packages or the files are missing, or cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import tokenizers
        except ImportError:
            raise UsageError("--tokenizer needs tokenizers and jinja2: pip install 'tierline[kvaware]'") from None
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # noqa: BLE001  (the library raises nothing narrower)
            raise UsageError(f"--tokenizer: cannot read {folder / 'tokenizer.json'}: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._beginnings = Beginnings(self._tokenizer)
        self._names, self._template = _template(folder)

    @property
    def tokenized(self) -> Counter[str]:
        """Tokens of chats: ``known`` from earlier ones that began alike, and ``new``."""
        return Counter(known=self._beginnings.reused, new=self._beginnings.made)

    def tokens(self, text: str | None, chat: Chat | None) -> bytes | None:
        """Return the tokens of a completion's text or of a chat, as they are hashed.

        ``None`` for what only the engine can tell.
        """
        if text is not None:
            return token_bytes(self._tokenizer.encode(text).ids)
        if chat is None or self._template is None:
            return None
        messages = [{"role": message.role, "content": message.content} for message in chat]
        try:
            prompt = self._template.render(messages=messages, add_generation_prompt=True, **self._names)
        except Exception:  # noqa: BLE001  (a template may raise anything; the engine will say what is wrong)
            return None
        return self._beginnings.tokens(prompt)


def _template(folder: Path) -> "tuple[dict[str, str], jinja2.Template | None]":
    """Return the special tokens by name, and the template where there is one."""
    try:
        settings: dict[str, Any] = json.loads((folder / "tokenizer_config.json").read_text())
        file = folder / "chat_template.jinja"
        source = file.read_text() if file.exists() else settings.get("chat_template")
    except FileNotFoundError:
        return {}, None
    except (OSError, ValueError) as error:
        raise UsageError(f"--tokenizer: cannot read {folder}: {error}") from None
    names = {
        name: value["content"] if isinstance(value, dict) else value
        for name, value in settings.items()
        if name.endswith("_token") and isinstance(value, str | dict)
    }
    if not isinstance(source, str):
        return names, None
    import jinja2.ext
    import jinja2.sandbox

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    try:
        return names, environment.from_string(source)
    except jinja2.TemplateError as error:
        raise UsageError(f"--tokenizer: cannot read the chat template in {folder}: {error}") from None


def _refuse(message: str) -> None:
    raise ValueError(message)
