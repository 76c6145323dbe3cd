"""``invoke``: one request to an endpoint, and what it took."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tierline.cli.endpoint.connecting import Name, Target, asks_cluster
from tierline.errors import UsageError

if TYPE_CHECKING:
    from tierline.cli.printing import Output


@asks_cluster
async def invoke(
    target: Target,
    output: "Output",
    name: Name,
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="The prompt; - is standard input.")
    ] = "In one sentence: what is a KV cache?",
    body: Annotated[
        Path | None,
        typer.Option("--body", metavar="FILE", help="Send this JSON as it is, and print the JSON that comes."),
    ] = None,
    path: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Where at the endpoint.", show_default="/v1/chat/completions, or as --body"),
    ] = None,
    completion: Annotated[
        bool, typer.Option("--completion", help="Complete the prompt; for models that do not chat.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Model that is asked.", show_default="the endpoint's first")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens of the answer, at most.")] = 128,
    session: Annotated[str | None, typer.Option(metavar="ID", help="Session that the request belongs to.")] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File with the API key that the router asks for.")
    ] = None,
    url: Annotated[
        str | None,
        typer.Option("--url", metavar="URL", help="Address of the endpoint.", show_default="the Kubernetes API's"),
    ] = None,
) -> None:
    """Ask an endpoint, print the answer as it comes, and say what it took: first token, tokens, who answered and why.

    Without --url the request goes by the endpoint's Service through the Kubernetes API, which needs the right to
    create services/proxy, and hands an answer on five times a second: times are up to 0.2 s too long.

    \b
    Examples:
      tierline endpoint invoke demo
      tierline endpoint invoke demo 'What is a KV cache?' --max-tokens 256
      tierline endpoint invoke demo --body request.json
      tierline endpoint invoke demo --url https://demo.example.org --api-key-file key
    """
    import aiohttp

    from tierline.operator.endpoints import invoking
    from tierline.operator.endpoints.reaching import ByUrl, Way, through_cluster

    headers = {"x-api-key": _key(api_key_file)} if api_key_file is not None else {}
    if session is not None:
        headers["x-session-id"] = session
    async with aiohttp.ClientSession() as http:
        way: Way = (
            ByUrl(http, url)
            if url is not None
            else await through_cluster(target.cluster, target.namespace, name, target.system_namespace)
        )
        if body is not None:
            document = _document(body)
            output.document(await invoking.invoke_as_is(way, path or invoking.path_for(document), document, headers))
            return
        asked = invoking.asking(
            model or await invoking.served_model(way, headers),
            sys.stdin.read() if prompt == "-" else prompt,
            is_chat=not completion,
            max_tokens=max_tokens,
        )
        answered = await invoking.invoke(
            way, path or invoking.path_for(asked), asked, headers, lambda text: None if output.is_json else _write(text)
        )
    if output.is_json:
        output.document(answered)
        return
    _write("\n")
    output.note(_took(answered))


def _write(text: str) -> None:
    from tierline.cli.printing import harmless

    sys.stdout.write("\n".join(harmless(line) for line in text.split("\n")))
    sys.stdout.flush()


def _took(answered: Any) -> str:
    parts = []
    if answered.first_token_s is not None:
        parts.append(f"first token after {answered.first_token_s:.2f} s")
    parts.append(f"all after {answered.seconds:.2f} s")
    if answered.prompt_tokens is not None:
        cached = f", {answered.cached_tokens} of them cached" if answered.cached_tokens is not None else ""
        parts.append(f"{answered.prompt_tokens} tokens of prompt{cached}, {answered.completion_tokens} of answer")
    if answered.endpoint:
        parts.append(f"by {answered.endpoint} ({answered.strategy}: {answered.reason})")
    return "; ".join(parts)


def _key(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--api-key-file: cannot read {file}") from error


def _document(file: Path) -> dict[str, Any]:
    import json

    try:
        document = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"--body: {file}: {error}") from error
    if not isinstance(document, dict):
        raise UsageError(f"--body: {file}: got no JSON object")
    return document
