"""From the configuration to the children's command lines; what the machine lacks is found here, before any starts."""

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tierline.configuration import format_byte_size, load
from tierline.connectors.vllm.launch import kv_transfer_config
from tierline.errors import UsageError
from tierline.router.config import RouterConfig
from tierline.stack import engines, lmcache, machine, model
from tierline.stack.config import UpConfig
from tierline.stack.folders import runtime_folder
from tierline.stack.nodes import POOL_TOKEN, PlannedNode, first_segment, plan_nodes, ports_of
from tierline.stack.running import stack_folder
from tierline.stack.simulated_engine import SimulatedEngineConfig

_SIMULATED_BYTES = 128 * 1024**2
_OURS_BYTES = 256 * 1024**2  # node store without its segment, router, supervisor
_FURTHER_NODE_BYTES = 96 * 1024**2


@dataclass(frozen=True)
class PlannedChild:
    """A program to start.

    Parameters
    ----------
    name
        What the user reads.
    argv, environment
        The command, and what it gets besides our environment.
    url
        Where it serves.
    ready_path
        The route that answers 200 once it does.
    """

    name: str
    argv: list[str]
    environment: Mapping[str, str]
    url: str
    ready_path: str


@dataclass(frozen=True)
class StackPlan:
    """Everything that ``tierline up`` will start, and what it prints about it."""

    config: UpConfig
    folder: Path
    control: Path
    segment: str
    """Begins the names of all that the stack has in /dev/shm."""
    nodes: list[PlannedNode]
    stores: list[PlannedChild]
    """The nodes' programs, in their order."""
    kv_transfer: Mapping[str, object] | None
    """What joins a vLLM server to the first node."""
    caches: list[PlannedChild]
    """LMCache's servers, one for each replica, in their order; empty with our own connector."""
    replicas: list[PlannedChild]
    router: PlannedChild
    model_name: str | None
    model_folder: Path | None


def make_plan(config: UpConfig, say: model.Say) -> StackPlan:
    """Check the machine, prepare the model and return what to start.

    Parameters
    ----------
    config
        What the user asked for.
    say
        Told when the default model is made, which takes a while.

    Raises
    ------
    UsageError
        When something must be changed first: a port, a size, a missing package, a wrong strategy.
    EngineError
        When the default model cannot be made.
    """
    routed_to = config.endpoints or [f"http://{engines.ENGINE_HOST}:{config.port}"]  # its replicas' ports come later
    strategy = load(RouterConfig, None, {"strategy": config.strategy, "endpoints": routed_to}, {}).strategy
    if config.engine == "simulated":
        load(SimulatedEngineConfig, None, {"model": config.model}, {})
    machine.require_port(config.host, config.port, "--port")
    starts_vllm = config.engine == "vllm" and not config.endpoints
    if strategy == "kvaware":
        engines.require_pyzmq()
    if starts_vllm:
        engines.require_vllm()
        if config.connector != "tierline":
            lmcache.require_lmcache()
    chosen = model.local_model(config.model) if starts_vllm and config.model else None
    if config.cache:
        if config.node_port == config.port:
            raise UsageError(f"--node-port: {config.port} is the router's port; give another one")
        machine.require_port(engines.ENGINE_HOST, config.node_port, "--node-port")
    nodes = plan_nodes(config, has_events=strategy == "kvaware" and config.connector == "tierline")
    if nodes:
        size = len(nodes) * config.cache_size + _lmcache_bytes(config)
        machine.require_shared_memory(size, [node.segment for node in nodes])
    _require_memory(config, chosen, starts_vllm)
    if starts_vllm and chosen is None:
        chosen = model.prepare_default_model(say)

    folder = stack_folder(config.port)
    lookup_budget_ms = engines.CPU_LOOKUP_BUDGET_MS if starts_vllm else None
    joining = [kv_transfer_config(node.socket, lookup_budget_ms) for node in nodes]
    name = _model_name(config, chosen)
    ports = _Ports.choose(config, ports_of(nodes))
    transfers: list[Mapping[str, object] | None] = [
        joining[number % len(nodes)] if nodes else None for number in range(len(ports.replicas))
    ]
    if ports.caches:
        transfers = [lmcache.kv_transfer_config(port) for port in ports.caches]
    events = [_events(config, number) if strategy == "kvaware" else None for number in range(len(ports.replicas))]
    replicas = _replicas(config, name, chosen, ports.replicas, nodes, transfers, events)
    return StackPlan(
        config=config,
        folder=folder,
        control=runtime_folder() / f"tierline-up-{config.port}.sock",
        segment=first_segment(config),
        nodes=nodes,
        stores=[_store(config, node, nodes, folder) for node in nodes],
        kv_transfer=joining[0] if joining else None,
        caches=_caches(config, ports, nodes),
        replicas=replicas,
        router=_router(config, config.endpoints or [replica.url for replica in replicas], events, nodes),
        model_name=name,
        model_folder=chosen,
    )


@dataclass(frozen=True)
class _Ports:
    """What the children beside node store and router listen on."""

    replicas: list[int]
    caches: list[int]
    cache_pages: list[int]

    @classmethod
    def choose(cls, config: UpConfig, reserved: Collection[int]) -> "_Ports":
        replicas = config.replica_count
        caches = 0 if config.connector == "tierline" else replicas
        found = machine.free_ports_after(
            engines.ENGINE_HOST, config.port, replicas + 2 * caches, reserved={config.node_port, *reserved}
        )
        return cls(found[:replicas], found[replicas : replicas + caches], found[replicas + caches :])


def _lmcache_bytes(config: UpConfig) -> int:
    return 0 if config.connector == "tierline" else config.replica_count * config.lmcache_size


def _model_name(config: UpConfig, folder: Path | None) -> str | None:
    if config.endpoints:
        return None
    return folder.name if folder else config.model or SimulatedEngineConfig().model


def _require_memory(config: UpConfig, folder: Path | None, starts_vllm: bool) -> None:
    engine = 0
    if starts_vllm:
        weights = engines.weights_bytes(folder) if folder else model.DEFAULT_WEIGHTS_BYTES
        if engines.fastest_dtype() == "float32":
            weights *= 2  # they are stored in 16 bits
        engine = engines.VLLM_OVERHEAD_BYTES + config.engine_cache_size + weights
        if config.connector != "tierline":
            engine += lmcache.SERVER_OVERHEAD_BYTES + config.lmcache_size
    elif not config.endpoints:
        engine = _SIMULATED_BYTES
    cache = config.nodes * config.cache_size if config.cache else 0
    count = config.replica_count
    caches = f"{config.nodes} caches of together" if config.nodes > 1 else "a cache of"
    what = f"{count} replicas of {format_byte_size(engine)} and {caches} {format_byte_size(cache)}"
    machine.require_memory(count * engine + cache + _OURS_BYTES + (config.nodes - 1) * _FURTHER_NODE_BYTES, what)


def _store(config: UpConfig, node: PlannedNode, nodes: Sequence[PlannedNode], folder: Path) -> PlannedChild:
    argv = [*node.argv, "--log-level", config.log_level, "--log-format", config.log_format]
    return PlannedChild(node.name, argv, node.environment(nodes, folder / POOL_TOKEN), node.url, "/readyz")


def _caches(config: UpConfig, ports: _Ports, nodes: Sequence[PlannedNode]) -> list[PlannedChild]:
    planned = []
    for number, (port, page) in enumerate(zip(ports.caches, ports.cache_pages, strict=True), start=1):
        node = nodes[(number - 1) % len(nodes)]
        if config.connector == "lmcache":
            adapter = lmcache.stock_l2_adapter(node.url, node.segment)
        else:
            adapter = lmcache.plugin_l2_adapter(node.url)
        command = lmcache.server_command(
            port=port,
            http_port=page,
            memory_name=f"{first_segment(config)}.lmcache-{number}",
            size_bytes=config.lmcache_size,
            l2_adapter=adapter,
        )
        url = f"http://{engines.ENGINE_HOST}:{page}"
        planned.append(PlannedChild(f"lmcache-{number}", command.argv, command.environment, url, "/healthcheck"))
    return planned


def _replicas(
    config: UpConfig,
    name: str | None,
    folder: Path | None,
    ports: Sequence[int],
    nodes: Sequence[PlannedNode],
    transfers: Sequence[Mapping[str, object] | None],
    events: Sequence[engines.EventAddresses | None],
) -> list[PlannedChild]:
    threads = max(1, machine.usable_cpus() // max(1, config.replica_count))
    joined = lmcache.VLLM_ARGUMENTS if config.connector != "tierline" else ()
    planned = []
    for number, (port, transfer, published) in enumerate(zip(ports, transfers, events, strict=True), start=1):
        if folder is None:
            store = nodes[(number - 1) % len(nodes)].url if nodes else None
            command = engines.simulated_command(model=str(name), port=port, store=store, kv_events=published)
        else:
            command = engines.vllm_cpu_command(
                model=folder,
                served_name=str(name),
                port=port,
                threads=threads,
                kv_cache_bytes=config.engine_cache_size,
                kv_transfer=transfer,
                kv_events=published,
                dtype=engines.fastest_dtype(),
                dev_mode=config.engine_dev_mode,
                arguments=[*joined, *config.engine_arguments],
            )
        url = f"http://{engines.ENGINE_HOST}:{port}"
        planned.append(PlannedChild(f"replica-{number}", command.argv, command.environment, url, "/health"))
    return planned


def _events(config: UpConfig, number: int) -> engines.EventAddresses:
    """UNIX sockets: events have prompts in them, and nobody but this user may listen."""
    path = f"ipc://{runtime_folder()}/tierline-up-{config.port}-{number + 1}"
    return engines.EventAddresses(f"{path}.events", f"{path}.replay")


def _router(
    config: UpConfig,
    endpoints: Sequence[str],
    events: Sequence[engines.EventAddresses | None],
    nodes: Sequence[PlannedNode],
) -> PlannedChild:
    replay = config.engine == "vllm"
    addresses = [
        f"{url}={published.events}" + (f"?replay={published.replay}" if replay else "")
        for url, published in zip(endpoints, events, strict=False)
        if published is not None
    ]
    stores = []
    for number, url in enumerate(endpoints if nodes else ()):
        if (told := nodes[number % len(nodes)].events) is not None:
            stores.append(f"{url}={told.events}?replay={told.replay}")
    argv = [
        *(sys.executable, "-m", "tierline", "router", "--host", config.host, "--port", str(config.port)),
        *("--strategy", config.strategy),
        *(part for endpoint in endpoints for part in ("--endpoint", endpoint)),
        *(part for address in addresses for part in ("--kv-events", address)),
        *(part for address in stores for part in ("--node-events", address)),
        *(["--dashboard"] if config.dashboard else []),
        *(part for node in nodes if config.dashboard for part in ("--dashboard-store", node.url)),
        *("--log-level", config.log_level, "--log-format", config.log_format),
    ]
    # What listens everywhere is reached on loopback.
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(config.host, config.host)  # noqa: S104
    # A stack that is stopped takes its replicas along; to wait for their answers is no use.
    environment = {"TIERLINE_ROUTER_SHUTDOWN_TIMEOUT_S": "2"}
    return PlannedChild("router", argv, environment, f"http://{reachable}:{config.port}", "/health")
