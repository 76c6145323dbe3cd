"""What is known of an engine by its image and its command line, and how arguments are added to one.

What the user wrote stays as it is: an argument of ours is left out where the user has one of the same name, in any of
the spellings that vLLM's parser takes.
"""

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from tierline.operator.endpoint import Endpoint
from tierline.operator.manifests import annotations

VLLM, OTHER = "vllm", "other"

_SHELLS = frozenset({"sh", "bash", "dash", "ash", "zsh"})
_VERSION = re.compile(r"(?<![\d.])v?(\d+)\.(\d+)(?:\.\d+)?(?![\d.])")


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What serves the model.

    Parameters
    ----------
    kind
        ``vllm``, or ``other``, of which nothing more is known.
    version
        Major and minor, where the image's tag begins with one.
    command_line
        Its command and arguments, as far as they are not the image's own; of a shell, the words of its script.
    is_started_by_a_shell
        Whether arguments behind the command would be the shell's and not the engine's.
    """

    kind: str
    version: tuple[int, int] | None
    command_line: tuple[str, ...]
    is_started_by_a_shell: bool = False

    @property
    def processes(self) -> int:
        """How many workers the engine has in a pod, each with a connection of its own to the cache."""
        product = 1
        for flags in (
            ("--tensor-parallel-size", "-tp"),
            ("--pipeline-parallel-size", "-pp"),
            ("--data-parallel-size", "-dp"),
        ):
            value = value_of(self.command_line, *flags)
            product *= int(value) if value is not None and value.isdecimal() and int(value) > 0 else 1
        return product

    @property
    def data_parallel_ranks(self) -> int:
        """How many engines there are behind the one port."""
        value = value_of(self.command_line, "--data-parallel-size", "-dp")
        return int(value) if value is not None and value.isdecimal() and int(value) > 0 else 1

    @property
    def model(self) -> str | None:
        """What the engine was told to load: a path, or a name."""
        named = value_of(self.command_line, "--model")
        if named is not None:
            return named
        # `vllm serve MODEL`; an image whose entry point is that is given MODEL as its first argument.
        first = "" if self.is_started_by_a_shell else "serve"
        for before, token in zip((first, *self.command_line), self.command_line, strict=False):
            if before == "serve" and not token.startswith("-") and token not in ("serve", VLLM):
                return token
        return None


def engine_of(endpoint: Endpoint, arguments: Sequence[str]) -> Engine:
    """Return what is known of the engine of an endpoint that is started with ``arguments``.

    Annotations ``engine`` and ``engine-version`` say it of images whose name does not.
    """
    worker = endpoint.spec.worker
    name, _, tag = worker.image.partition("@")[0].rpartition("/")[2].partition(":")
    is_vllm = VLLM in worker.image.lower()
    kind = annotations.choice(endpoint, "engine", VLLM if is_vllm else OTHER, (VLLM, OTHER))
    # LMCache's own images are called vllm-openai and carry LMCache's version.
    is_named_for_it = VLLM in name and "lmcache" not in worker.image.lower()
    stated = endpoint.annotation("engine-version") or (tag if is_named_for_it else "")
    found = _VERSION.search(stated)
    words = (*(worker.command or ()), *arguments)
    is_shell = bool(words) and PurePosixPath(words[0]).name in _SHELLS
    return Engine(
        kind=kind,
        version=(int(found[1]), int(found[2])) if found else None,
        command_line=_of_script(words) if is_shell else words,
        is_started_by_a_shell=is_shell,
    )


def says(arguments: Iterable[str], *flags: str) -> bool:
    """Whether one of ``flags`` is among ``arguments``, with ``=VALUE`` or ``.KEY`` behind it or without."""
    return any(_flag(token) in flags for token in arguments)


def value_of(arguments: Sequence[str], *flags: str) -> str | None:
    """Return the value of the last of ``arguments`` that is one of ``flags``."""
    found = None
    for position, token in enumerate(arguments):
        if _flag(token) not in flags:
            continue
        if "=" in token:
            found = token.partition("=")[2]
        elif position + 1 < len(arguments):
            found = arguments[position + 1]
    return found


def overlaid(arguments: Sequence[str], over: Sequence[str]) -> tuple[str, ...]:
    """Return ``arguments`` without those that ``over`` says too, and ``over`` behind them."""
    said = {_flag(token) for token in over if _is_flag(token)}
    kept: list[str] = []
    is_dropped = False
    for token in arguments:
        if _is_flag(token):
            is_dropped = _flag(token) in said
        if not is_dropped:
            kept.append(token)
    return (*kept, *over)


def _of_script(words: Sequence[str]) -> tuple[str, ...]:
    """Return the words of a shell's script, as far as they can be told without running it."""
    try:
        return tuple(word for text in words[1:] for word in shlex.split(text, comments=True))
    except ValueError:  # of quotes that do not end
        return tuple(word for text in words[1:] for word in text.split())


def _is_flag(token: str) -> bool:
    return token.startswith("-") and not re.fullmatch(r"-\d+(\.\d+)?", token)


def _flag(token: str) -> str:
    """Return the name of an argument as vLLM's own help writes it."""
    name = token.partition("=")[0]
    if name.startswith("--"):
        name = "--" + name[2:].partition(".")[0].replace("_", "-")
    return name
