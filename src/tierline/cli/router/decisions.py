"""``decisions`` and ``explain``: where requests went, where one would go, and why."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tierline.cli.router.connecting import RouterAdmin, asks_router
from tierline.errors import UsageError

if TYPE_CHECKING:
    from tierline.cli.printing import Output
    from tierline.router.admin.documents import Choice, DecisionEntry


@asks_router
async def list_decisions(
    router: RouterAdmin,
    output: "Output",
    limit: Annotated[int, typer.Option(metavar="N", help="Most to list; the router keeps 512.")] = 50,
) -> None:
    """List the last requests, the latest first: where they went, why, and how it ended.

    PREFILL is the endpoint that computed the prompt for one that only decodes.
    CACHED is tokens of the prompt: predicted / as the engine says in `usage`.

    \b
    Examples:
      tierline router decisions
      tierline router decisions --limit 500 --json
    """
    from tierline.router.admin.documents import DecisionList

    found = await router.ask("GET", "/admin/decisions", DecisionList, query={"limit": str(limit)})
    if output.is_json:
        output.document(found)
        return
    columns = (
        "TIME", "REQUEST", "ROUTE", "MODEL", "SESSION", "STRATEGY", "ARM", "ENDPOINT", "PREFILL", "REASON", ">BLOCKS",
        ">CACHED",
        ">STATUS", ">TTFT", ">TOOK", "TROUBLE",
    )  # fmt: skip
    output.table(columns, [_row(entry) for entry in found.decisions])


@asks_router
async def explain(
    router: RouterAdmin,
    output: "Output",
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="A prompt's text.", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="The model that is asked for.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="The prompt is a user's message of a chat.")] = False,
    request: Annotated[
        Path | None,
        typer.Option("--request", metavar="FILE", help="The body of a request instead, in JSON; - for standard input."),
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option("--header", metavar="FIELD", help="A header of the request, such as 'x-session-id: ann'."),
    ] = None,
) -> None:
    """Say where a request would go now, and why; nothing is sent there, and nothing changes by asking.

    \b
    Examples:
      tierline router explain --model m 'Once upon a time'
      tierline router explain --model m --chat Hello --header 'x-session-id: ann'
      tierline router explain --request body.json --json
    """
    from tierline.router.admin.documents import Explanation

    body, fields = _body(prompt, model, request, is_chat=chat), _fields(header or [])
    found = await router.ask("POST", "/admin/explain", Explanation, body=body, headers=fields)
    if output.is_json:
        output.document(found)
        return
    choice = found.choice
    facts = [
        ("strategy", found.strategy if found.arm == "main" else f"{found.strategy} ({found.arm})"),
        ("model", found.model or "any"),
        ("prompt", f"{found.prompt_tokens:,} tokens"),
    ]
    if found.told_by:
        facts.append(("told by", found.told_by))
    if choice is None:
        facts.append(("endpoint", "none can be chosen"))
    else:
        facts += [("endpoint", choice.endpoint), ("reason", choice.reason), ("blocks", _blocks(choice))]
        if choice.predicted_by_tier:
            read = (f"{tokens:,} from {tier}" for tier, tokens in choice.predicted_by_tier.items())
            facts.append(("cached tokens", ", ".join(read)))
        if choice.confidence:
            facts.append(("confidence", choice.confidence))
    if found.pairing:
        facts.append(("prefill", found.pairing if found.prefill is None else f"by {found.prefill.endpoint}"))
    output.facts(facts)
    if choice is not None and choice.weighed:
        output.line("")
        rows = [
            (
                weighed.endpoint,
                "too busy" if weighed.waiting_tokens is None else f"{weighed.waiting_tokens:,}",
                f"{weighed.uncached_tokens:,}",
                "" if weighed.seconds is None else f"{weighed.seconds:.3g}",
                str(weighed.matched_blocks),
                *([weighed.known] if weighed.known else []),
            )
            for weighed in choice.weighed
        ]
        columns = ("CANDIDATE", ">TOKENS WAITING", ">TO COMPUTE", ">SECONDS", ">MATCHED BLOCKS")
        output.table((*columns, "KNOWN") if choice.weighed[0].known else columns, rows)
    if found.passed_over:
        output.line("")
        output.table(("PASSED OVER", "WHY"), [(entry.endpoint, entry.why) for entry in found.passed_over])


def _body(prompt: str | None, model: str | None, request: Path | None, *, is_chat: bool) -> bytes:
    import msgspec

    if (prompt is None) == (request is None):
        raise UsageError("PROMPT: give one, or the body of a request with --request")
    if request is not None:
        try:
            return sys.stdin.buffer.read() if str(request) == "-" else request.read_bytes()
        except OSError as error:
            raise UsageError(f"--request: cannot read {request}: {error.strerror}") from error
    body: dict[str, object] = {"messages": [{"role": "user", "content": prompt}]} if is_chat else {"prompt": prompt}
    return msgspec.json.encode(body if model is None else {"model": model, **body})


def _fields(headers: list[str]) -> dict[str, str]:
    fields = {}
    for header in headers:
        name, colon, value = header.partition(":")
        if not colon or not name.strip():
            raise UsageError(f"--header: got {header!r}; allowed: NAME: VALUE")
        fields[name.strip()] = value.strip()
    return fields


def _row(entry: "DecisionEntry") -> tuple[str, ...]:
    from datetime import UTC, datetime

    choice = entry.choice
    predicted = "-" if choice is None else f"{choice.predicted_cached_tokens:,}"
    actual = "-" if entry.actual_cached_tokens is None else f"{entry.actual_cached_tokens:,}"
    pairing = [entry.pairing] if entry.pairing.startswith("fallback") else []
    trouble = [*entry.retries, *pairing, *([f"{entry.aborted_by} left"] if entry.aborted_by else [])]
    return (
        datetime.fromtimestamp(entry.time, UTC).strftime("%H:%M:%S"),
        entry.request_id,
        entry.route,
        entry.model or "-",
        entry.session or "-",
        entry.strategy,
        entry.arm,
        "-" if choice is None else choice.endpoint,
        "-" if entry.prefill is None else entry.prefill.endpoint,
        "-" if choice is None else choice.reason,
        "-" if choice is None else _blocks(choice),
        f"{predicted} / {actual}",
        str(entry.status),
        "-" if entry.ttft_s is None else f"{1000 * entry.ttft_s:,.0f} ms",
        f"{1000 * entry.seconds:,.0f} ms",
        ", ".join(trouble) or "-",
    )


def _blocks(choice: "Choice") -> str:
    return f"{choice.matched_blocks} of {choice.total_blocks}"
