"""What the examples share: a question to a router by the ``openai`` client, and what can be known of the answer."""

import argparse
import time
from pathlib import Path

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
        self._model = self._client.models.list().data[0].id
        self._answer_tokens = answer_tokens
        print(f"{'first token':>11}  {'prompt':>6}  {'cached':>6}  endpoint  tier  answer")

    def ask(self, messages: list[ChatCompletionMessageParam]) -> str:
        """Return the answer to a conversation."""
        started = time.monotonic()
        first_token_s: float | None = None
        parts, prompt, cached = [], 0, 0
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


def arguments(about: str | None, file: str = "") -> argparse.Namespace:
    """Return what the command line says: the router's address, and where an example reads a file, which."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--url", default=ROUTER, help="the router's OpenAI API (default: %(default)s)")
    parser.add_argument("--answer-tokens", type=int, default=32, help="most that an answer may have")
    if file:
        parser.add_argument("--file", type=Path, default=REPOSITORY / file, help="what is read (default: %(default)s)")
    return parser.parse_args()
