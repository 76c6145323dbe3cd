"""``status``: how an endpoint stands, how long each phase of its pods takes, and what keeps it from serving."""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from tierline.cli.endpoint.connecting import Name, Target, Timeout, asks_cluster
from tierline.errors import ClusterUnavailable, EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tierline.cli.printing import Output
    from tierline.operator.endpoints.phases import Phase
    from tierline.operator.endpoints.standing import Standing
    from tierline.operator.endpoints.troubles import Trouble

POLL_S = 1.0


@asks_cluster
async def status(
    target: Target,
    output: "Output",
    name: Name,
    wait: Annotated[bool, typer.Option("--wait", help="Tell what happens until it serves, or cannot.")] = False,
    timeout_s: Timeout = 3600.0,
) -> None:
    """Print how an endpoint stands: its conditions, its pods and how long each phase takes, and what is wrong.

    The phases of a pod are schedule (a node is looked for), download (init containers bring the model), start (volumes,
    images, containers), load (until the engine answers) and join (until the router takes it in). Whatever keeps a pod
    from going on is told in words, with what to do: rights of S3, images, drivers, room, memory.

    With --wait the exit status is 0 once the endpoint is ready, and 1 if it fails or is not ready in time.

    \b
    Examples:
      tierline endpoint status demo
      tierline endpoint status demo --wait --timeout 1200
      tierline endpoint status demo -n team-a --json
    """
    if wait:
        await watch(target, output, target.namespace, name, timeout_s)
        return
    from tierline.operator.endpoints.standing import standing

    stands = await standing(target.cluster, target.namespace, name, system_namespace=target.system_namespace)
    if output.is_json:
        output.document(stands)
    else:
        _print(output, stands)


async def watch(target: Target, output: "Output", namespace: str, name: str, timeout_s: float) -> None:
    """Tell what happens to an endpoint until it is ready.

    Raises
    ------
    EngineError
        It cannot be, or is not in time.
    """
    from tierline.cli.printing import duration
    from tierline.operator.endpoints.standing import standing

    clock = asyncio.get_running_loop().time
    begun = clock()
    told: set[str] = set()
    has_answered = False
    while True:
        try:
            stands = await standing(target.cluster, namespace, name, system_namespace=target.system_namespace)
        except ClusterUnavailable as error:
            if not has_answered or clock() - begun >= timeout_s:
                raise
            output.note(f"{error}; asked again")
            await asyncio.sleep(POLL_S)
            continue
        has_answered = True
        if not output.is_json:
            for line in _lines(stands):
                if line not in told:
                    told.add(line)
                    output.line(line)
        if stands.is_ready or stands.is_failed or clock() - begun >= timeout_s:
            break
        await asyncio.sleep(POLL_S)
    if output.is_json:
        output.document(stands)
    elif stands.is_ready:
        output.line(f"{name} is ready after {duration(clock() - begun)}")
    if not stands.is_ready:
        wrong = [*stands.troubles, *(trouble for pod in stands.pods for trouble in pod.troubles)]
        reasons = "; ".join(dict.fromkeys(_sentence(trouble) for trouble in wrong))
        how = "has failed" if stands.is_failed else f"is not ready after {duration(timeout_s)}"
        raise EngineError(f"endpoint {name} {how}" + (f": {reasons}" if reasons else ""))


def _lines(stands: "Standing") -> "Iterator[str]":
    """Yield what can be told by now, in lines that stay as they are once they are true."""
    from tierline.cli.printing import duration

    if stands.state:
        yield f"{stands.name}: {stands.state}"
    for trouble in stands.troubles:
        if not trouble.is_passing:
            yield f"{stands.name}: {_sentence(trouble)}"
    for pod in stands.pods:
        for phase in pod.phases:
            if phase.is_over:
                yield f"{pod.name}: {phase.name} took {duration(phase.seconds)}"
            else:
                yield f"{pod.name}: {phase.name}…"
        for trouble in pod.troubles:
            yield f"{pod.name}: {_sentence(trouble)}"


def _print(output: "Output", stands: "Standing") -> None:
    from tierline.operator.endpoints.phases import MEANINGS

    ready = "ready" if stands.is_ready else "failed" if stands.is_failed else "not ready"
    output.line(f"{stands.kind} {stands.namespace}/{stands.name}: {ready}" + (stands.state and f", {stands.state}"))
    if stands.pods:
        output.line("")
        columns = ("POD", "ROLE", "NODE", *(f">{phase.upper()}" for phase in MEANINGS), "STATE")
        rows = []
        for pod in stands.pods:
            took = {phase.name: phase for phase in pod.phases}
            state = "ending" if pod.is_ending else "serves" if pod.is_serving else "comes"
            cells = [_cell(took.get(phase)) for phase in MEANINGS]
            rows.append((pod.name, pod.role, pod.node or "-", *cells, state))
        output.table(columns, rows)
    if stands.conditions:
        output.line("")
        output.table(
            ("CONDITION", "STATUS", "REASON", "MESSAGE"),
            [(each.type, each.status, each.reason, each.message) for each in stands.conditions],
        )
    wrong = [(stands.name, trouble) for trouble in stands.troubles]
    wrong += [(pod.name, trouble) for pod in stands.pods for trouble in pod.troubles]
    if wrong:
        output.line("")
    for who, trouble in wrong:
        output.line(f"{who}: {_sentence(trouble)}")
        if trouble.said:
            output.line(f"    {trouble.said}")


def _cell(phase: "Phase | None") -> str:
    from tierline.cli.printing import duration

    if phase is None:
        return "-"
    return duration(phase.seconds) if phase.is_over else f"{duration(phase.seconds)}…"


def _sentence(trouble: "Trouble") -> str:
    return f"{trouble.what}: {trouble.remedy}" if trouble.remedy else trouble.what
