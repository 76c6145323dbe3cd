"""What the examples share: a question to a router by the ``openai`` client, and what can be known of the answer.

A wrong address or file ends an example with one line.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import openai
from openai.types.chat import ChatCompletionMessageParam

ROUTER = "http://127.0.0.1:8000/v1"
"""Where ``tierline up`` listens."""
REPOSITORY = Path(__file__).resolve().parent.parent


class Asker:
    """Asks the first model that the router serves, and prints a line for each answer.

    Parameters
    ----------
    url
        Base URL of the router's OpenAI API.
    answer_tokens
        Most that an answer may have.
    """

    def __init__(self, url: str, answer_tokens: int) -> None:
        # Tierline asks for no key unless it is told to; then this is where yours goes.
        self._client = openai.OpenAI(base_url=url, api_key="none")
        self._url = url
        self._answer_tokens = answer_tokens
        with self._asking():
            models = self._client.models.with_raw_response.list().http_response
        try:
            self._model: str = models.json()["data"][0]["id"]
        except (ValueError, LookupError, TypeError):  # a server of something else
            _stop(f"{url}: names no model; --url is to be an OpenAI API, such as {ROUTER}")
        print(f"{'first token':>11}  {'prompt':>6}  {'cached':>6}  endpoint  tier  answer")

    def ask(self, messages: list[ChatCompletionMessageParam]) -> str:
        """Return the answer to a conversation."""
        started = time.monotonic()
        first_token_s: float | None = None
        parts, prompt, cached = [], 0, 0
        with self._asking():
            raw = self._client.chat.completions.with_raw_response.create(
                model=self._model,
                messages=messages,
                max_tokens=self._answer_tokens,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
            )
            for chunk in raw.parse():
                if chunk.choices and chunk.choices[0].delta.content:
                    first_token_s = first_token_s or time.monotonic() - started
                    parts.append(chunk.choices[0].delta.content)
                if chunk.usage is not None:
                    details = chunk.usage.prompt_tokens_details
                    prompt, cached = chunk.usage.prompt_tokens, (details.cached_tokens or 0) if details else 0
        answer = "".join(parts)
        # The strategy kvaware knows what is where; with others the engine's count is all that there is.
        tier = raw.headers.get("x-tierline-predicted-by-tier") or ("not said" if cached else "none")
        endpoint = raw.headers.get("x-tierline-endpoint", "no router")
        shown = " ".join(answer.split())[:60]
        print(f"{first_token_s or 0:>9.2f} s  {prompt:>6}  {cached:>6}  {endpoint}  {tier}  {shown}")
        return answer

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except openai.APIError as error:
            _stop(f"{self._url}: {error}")


def text_of(file: Path) -> str:
    """Return what a file has."""
    try:
        return file.read_text()
    except OSError as error:
        _stop(f"--file {file}: {error.strerror}")
    except UnicodeDecodeError:
        _stop(f"--file {file}: is no text")


def arguments(about: str | None, file: str = "") -> argparse.Namespace:
    """Return what the command line says: the router's address, and where an example reads a file, which."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--url", default=ROUTER, help="the router's OpenAI API (default: %(default)s)")
    parser.add_argument("--answer-tokens", type=int, default=32, help="most that an answer may have")
    if file:
        parser.add_argument("--file", type=Path, default=REPOSITORY / file, help="what is read (default: %(default)s)")
    return parser.parse_args()


def _stop(why: str) -> NoReturn:
    print(" ".join(why.split()), file=sys.stderr)
    raise SystemExit(2)
