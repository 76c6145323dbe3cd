"""``endpoints``, ``add``, ``drain`` and ``remove``: the endpoints of a running router, and changes of them."""

from typing import TYPE_CHECKING, Annotated

import typer

from tierline.cli.router.connecting import RouterAdmin, asks_router

if TYPE_CHECKING:
    from tierline.cli.printing import Output
    from tierline.router.admin.documents import EndpointState

Url = Annotated[str, typer.Argument(metavar="ENDPOINT", help="The endpoint's URL.")]


@asks_router
async def list_endpoints(router: RouterAdmin, output: "Output") -> None:
    """List the endpoints: state, load, health, capacity.

    \b
    Examples:
      tierline router endpoints
      tierline router endpoints --url http://10.0.0.7:8000 --json
    """
    from tierline.router.admin.documents import EndpointList

    found = await router.ask("GET", "/admin/endpoints", EndpointList)
    if output.is_json:
        output.document(found)
    else:
        _print(output, found.endpoints)
        for alias in found.aliases:
            if not alias.is_served:
                output.line(f"nobody serves {alias.model}, which {alias.alias} stands for")


@asks_router
async def add(
    router: RouterAdmin,
    output: "Output",
    endpoint: Url,
    weight: Annotated[float, typer.Option(help="Its share of the load, against the others'.")] = 1.0,
    role: Annotated[
        list[str] | None,
        typer.Option(metavar="ROLE", help="What it takes, prefill or decode.", show_default="both"),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A model that it serves; repeat for more.", show_default="as it says"),
    ] = None,
    kv_events: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Where it publishes KV events, such as tcp://10.0.0.7:5557.")
    ] = None,
    node_events: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Where the node store that it reads publishes them.")
    ] = None,
) -> None:
    """Add an endpoint until the router ends; one that drains serves again.

    \b
    Examples:
      tierline router add http://10.0.0.9:8000
      tierline router add http://10.0.0.9:8000 --weight 2 --model llama-3-8b
    """
    import msgspec

    from tierline.router.admin.documents import EndpointState

    spec: dict[str, object] = {"url": endpoint, "weight": weight, "kv_events": kv_events, "node_events": node_events}
    if role:
        spec["roles"] = role
    if model:
        spec["models"] = model
    added = await router.ask("POST", "/admin/endpoints", EndpointState, body=msgspec.json.encode(spec))
    _print_one(output, added)


@asks_router
async def drain(router: RouterAdmin, output: "Output", endpoint: Url) -> None:
    """Send an endpoint nothing new; it is removed when the requests that it has are over.

    \b
    Examples:
      tierline router drain http://10.0.0.9:8000
    """
    from tierline.router.admin.documents import EndpointState

    drained = await router.ask("POST", "/admin/endpoints/drain", EndpointState, query={"url": endpoint})
    _print_one(output, drained)


@asks_router
async def remove(router: RouterAdmin, output: "Output", endpoint: Url) -> None:
    """Remove an endpoint now; the requests that it has come to their end all the same.

    \b
    Examples:
      tierline router remove http://10.0.0.9:8000
    """
    from tierline.router.admin.documents import EndpointState

    removed = await router.ask("DELETE", "/admin/endpoints", EndpointState, query={"url": endpoint})
    if output.is_json:
        output.document(removed)
    else:
        output.line(f"{removed.url} is removed; requests that it had: {removed.inflight}")


def _print_one(output: "Output", endpoint: "EndpointState") -> None:
    if output.is_json:
        output.document(endpoint)
    else:
        _print(output, [endpoint])


def _print(output: "Output", endpoints: "list[EndpointState]") -> None:
    columns = (
        "ENDPOINT", "STATE", "FROM", ">WEIGHT", "ROLES", ">IN FLIGHT", ">QUEUED TOKENS", ">PREFILL TOKENS/S",
        ">KV TOKENS", ">EJECTIONS", "MODELS",
    )  # fmt: skip
    rows = [
        (
            endpoint.url,
            _state(endpoint),
            endpoint.source,
            f"{endpoint.weight:g}",
            ", ".join(endpoint.roles),
            f"{endpoint.inflight:,}",
            f"{endpoint.queued_tokens:,}",
            "-" if endpoint.prefill_tokens_per_second is None else f"{endpoint.prefill_tokens_per_second:,.0f}",
            _kv_tokens(endpoint),
            f"{endpoint.ejections:,}",
            "-" if endpoint.models is None else ", ".join(endpoint.models),
        )
        for endpoint in endpoints
    ]
    output.table(columns, rows)


def _state(endpoint: "EndpointState") -> str:
    from tierline.cli.printing import duration

    seconds = {"ejected": endpoint.ejected_for_s, "resting": endpoint.rests_for_s}.get(endpoint.state)
    return endpoint.state if seconds is None else f"{endpoint.state} for {duration(seconds)}"


def _kv_tokens(endpoint: "EndpointState") -> str:
    if endpoint.capacity_blocks is None or endpoint.block_tokens is None:
        return "-"
    return f"{endpoint.capacity_blocks * endpoint.block_tokens:,}"
