"""``tierline ask``: one prompt, several replicas of a running ``tierline up``, and who had it."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer


def ask(
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt.", show_default="a made-up document of some 1,500 tokens")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="Read the prompt from a file.", exists=True, dir_okay=False)
    ] = None,
    replica: Annotated[
        list[int] | None,
        typer.Option(help="Number of a replica to ask, from 1 on; repeat for more.", show_default="each in turn"),
    ] = None,
    port: Annotated[int, typer.Option(help="Port of the stack's router.")] = 8000,
    is_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Send one prompt to replicas of a running `tierline up`, one after the other, and say who had it.

    Of each request: the tokens that the engine's own cache had, those from the memory of its node, those from a tier
    below it and which of its nodes answered, those that were computed, and the time until the first token. What is
    shared are whole chunks of 256 tokens. Replicas are asked past the router; with LMCache they do not say who had it.

    \b
    Examples:
      tierline up --nodes 3 & tierline ask --replica 1 --replica 3
      tierline ask --file prompt.txt --replica 1 --replica 1 --replica 2
    """
    from tierline.cli.printing import Output
    from tierline.connectors.vllm.launch import IN_MEMORY
    from tierline.errors import UsageError
    from tierline.stack.asking import Asked
    from tierline.stack.asking import ask as ask_replicas
    from tierline.stack.running import find_stack

    if file is not None and prompt is not None:
        raise UsageError("--file: there is a prompt already; keep one")
    stack = find_stack(port)
    if stack is None:
        raise UsageError(f"--port: no `tierline up` is ready on {port}")
    text = file.read_text() if file is not None else prompt or _document()
    output = Output(is_json=is_json)

    async def asked() -> list[Asked]:
        numbers = replica or range(1, len(stack.replicas) + 1)
        return [each async for each in ask_replicas(stack, text, numbers)]

    answers = asyncio.run(asked())
    if is_json:
        output.document(answers)
        return
    rows = []
    for each in answers:
        loaded = each.loaded_tokens
        below = {source: tokens for source, tokens in (loaded or {}).items() if source != IN_MEMORY}
        said = ", ".join(f"{tokens} {source}" for source, tokens in below.items()) or "0"
        rows.append(
            (
                each.replica,
                each.node or "-",
                str(each.prompt_tokens),
                "?" if loaded is None else str(each.engine_tokens),
                "?" if loaded is None else str(loaded.get(IN_MEMORY, 0)),
                "?" if loaded is None else said,
                str(each.prompt_tokens - each.cached_tokens),
                f"{each.seconds:.2f} s",
            )
        )
    output.table(("replica", "node", ">prompt", ">engine", ">memory", "below", ">computed", ">first token"), rows)


def _document() -> str:
    """Return a text that is new at each call, so that nobody has it yet."""
    import secrets

    lines = (f"Line {number}: item {number} has colour {number * 7 % 13}. " for number in range(110))
    return f"Document {secrets.token_hex(4)}. " + "".join(lines)
