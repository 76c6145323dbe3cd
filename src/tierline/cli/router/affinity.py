"""``affinity``: whether caches and sessions have a say in a running router, and the switch for it."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tierline.cli.router.connecting import RouterAdmin, asks_router

if TYPE_CHECKING:
    from tierline.cli.printing import Output


@asks_router
async def affinity(
    router: RouterAdmin,
    output: "Output",
    to: Annotated[
        Literal["on", "off"] | None,
        typer.Argument(metavar="on|off", help="Turns it on or off; without it, only shows.", show_default=False),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", metavar="NAME", help="Only for this model.", show_default="all models")
    ] = "",
) -> None:
    """Show which strategies choose, or make the router choose by load alone until affinity is turned on again.

    It takes effect with the next request that is sent on, and lasts as long as the router: at its start the
    configuration says.

    \b
    Examples:
      tierline router affinity
      tierline router affinity off
      tierline router affinity off --model llama-3-8b
      tierline router affinity on
    """
    from tierline.router.admin.documents import AffinityState

    if to is None:
        found = await router.ask("GET", "/admin/affinity", AffinityState)
    else:
        found = await router.ask("POST", "/admin/affinity", AffinityState, query={"to": to, "model": model})
    if output.is_json:
        output.document(found)
        return
    names = [model or "all models" for model in found.turned_off]
    output.line(f"affinity is turned off for {', '.join(names)}" if names else "affinity is on")
    output.line("")
    rows = [
        (state.model or "(others)", state.arm, state.strategy, f"{100 * state.share:.3g}%", f"{state.requests:,}")
        for state in found.arms
    ]
    output.table(("MODEL", "ARM", "STRATEGY", ">SHARE NOW", ">REQUESTS"), rows)
