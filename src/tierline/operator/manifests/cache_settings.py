"""What ``kvCacheSpec`` makes of a pod: how its engine is joined to the cache, by LMCache or by our connector.

LMCache is the image's own. Our connector is brought by an init container, for the versions of vLLM that it is tested
with. A variable that refers to another one comes behind it: that is how Kubernetes expands them.
"""

import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from tierline.connectors.vllm import kv_transfer_config
from tierline.operator.config import OperatorConfig
from tierline.operator.endpoint import ANNOTATION_PREFIX, Endpoint
from tierline.operator.manifests import annotations, programs
from tierline.operator.manifests.buckets import POD_UID, bucket, is_pinned
from tierline.operator.manifests.engines import VLLM, Engine, says
from tierline.operator.manifests.manifest import Manifest, Notice
from tierline.operator.manifests.network_policies import KV_EVENTS_PORT, KV_REPLAY_PORT
from tierline.operator.manifests.node_stores import EVENTS_PORT, SOCKET_FOLDER, wants_store
from tierline.operator.manifests.pairs import Group
from tierline.operator.manifests.parts import Parts, variable
from tierline.operator.manifests.redis import redis_url, wants_redis
from tierline.operator.manifests.routing import is_routed
from tierline.operator.manifests.sizes import GIB, TRANSIT_BYTES, cache_size
from tierline.operator.names import NODE_PORT
from tierline.prefix import CHUNK_TOKENS

TESTED_VLLM = frozenset({(0, 32)})
"""Versions of vLLM that our connector joins; ``tests/e2e`` runs it inside them."""
CONFIG_VOLUME = "lmcache-config"
"""A volume of ``kubernetes.volumes`` with this name is mounted where ``cacheConfigFile`` is."""
CONNECTOR_FOLDER = "/opt/tierline"
"""Of the connector's image, and of the engine, which finds it by PYTHONPATH."""
SOCKET_NAME = "node.sock"
PYTHON_PATH = "PYTHONPATH"
"""Folders that Python looks in; the user's come before ours."""
NODE_IP = programs.field("NODE_IP", "status.hostIP")

EXTRA_CONFIG = "LMCACHE_EXTRA_CONFIG"
_SEGMENT_VOLUME = "kv-cache"
_SOCKET_VOLUME = "node-store"
CONNECTOR = "tierline-connector"
"""The init container that copies our connector, and the volume that it copies it to."""
_COPIED_TO = "/copy"
_CONNECTIONS_PER_MACHINE = 128
"""What a node store's clients open to it at most, all together: 16 for each of eight workers."""
_L1_POLICIES = {"lru": "LRU", "lfu": "LFU", "fifo": "FIFO"}
"""That LMCache knows, among those that the node store does."""
_FAILURE_POLICY_SINCE = (0, 14)
"""vLLM's ``kv_load_failure_policy``; what came before computes again what cannot be loaded."""
_SIDE_CHANNEL_PORT = 5600


def cache_settings(endpoint: Endpoint, group: Group, engine: Engine, config: OperatorConfig) -> Parts:
    """Return what joins the engine of a group to the cache, and to the engines of the other group.

    Raises
    ------
    ConfigurationError
        An annotation has a value that it cannot have.
    """
    wanted = _is_cached(endpoint) or group.role is not None
    if engine.kind != VLLM:
        return Parts(notices=(_not_vllm(endpoint),)) if wanted else Parts()
    parts = Parts(environment=(variable("PYTHONHASHSEED", "0"),))  # else each engine hashes the same prefix otherwise
    if _is_cached(endpoint) and _is_ours(endpoint, engine, config):
        parts += _our_connector(endpoint, config)
    else:
        connectors = []
        if group.role is not None:
            connectors.append({"kv_connector": "NixlConnector", "kv_role": "kv_both"})
            parts += Parts(
                environment=(
                    variable("VLLM_NIXL_SIDE_CHANNEL_HOST", "$(POD_IP)"),
                    variable("VLLM_NIXL_SIDE_CHANNEL_PORT", str(_SIDE_CHANNEL_PORT)),
                )
            )
        if _is_cached(endpoint):
            connectors.append({"kv_connector": "LMCacheConnectorV1", "kv_role": "kv_both"})
            parts += _lmcache(endpoint, group, engine, config)
        if connectors:
            parts += Parts(arguments=(("--kv-transfer-config", json.dumps(_transfer(connectors, engine))),))
    return parts + _events(endpoint, engine, config)


def connector_of(endpoint: Endpoint, config: OperatorConfig) -> str:
    """Return what joins engines to the cache where it can: ``lmcache`` or ``tierline``."""
    return annotations.choice(endpoint, "connector", config.connector, ("lmcache", "tierline"))


def _is_cached(endpoint: Endpoint) -> bool:
    cache = endpoint.spec.kv_cache_spec
    return cache is not None and (cache.enable_l1_cache or cache.enable_l2_cache or bool(cache.cache_config_file))


def _is_ours(endpoint: Endpoint, engine: Engine, config: OperatorConfig) -> bool:
    is_wanted = connector_of(endpoint, config) == "tierline" and wants_store(endpoint, config)
    return is_wanted and engine.version in TESTED_VLLM


def _our_connector(endpoint: Endpoint, config: OperatorConfig) -> Parts:
    """Return what brings our connector beside the engine, and leads it to the node store's socket."""
    transfer = kv_transfer_config(f"{SOCKET_FOLDER}/{SOCKET_NAME}")
    extra = transfer["kv_connector_extra_config"]
    assert isinstance(extra, dict)
    # Keys are of the weights' own fingerprint: endpoints of a namespace share what they compute of the same model.
    extra["tierline.bucket"] = endpoint.namespace
    copy = {
        "name": CONNECTOR,
        "image": config.connector_image,
        "command": ["cp", "-R", f"{CONNECTOR_FOLDER}/.", _COPIED_TO],
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
        "securityContext": programs.restricted(),
        "volumeMounts": [{"name": CONNECTOR, "mountPath": _COPIED_TO}],
    }
    return Parts(
        arguments=(("--kv-transfer-config", json.dumps(transfer)),),
        environment=(variable(PYTHON_PATH, CONNECTOR_FOLDER),),
        mounts=(
            {"name": CONNECTOR, "mountPath": CONNECTOR_FOLDER, "readOnly": True},
            {"name": _SOCKET_VOLUME, "mountPath": SOCKET_FOLDER},
        ),
        volumes=(
            {"name": CONNECTOR, "emptyDir": {}},
            {"name": _SOCKET_VOLUME, "hostPath": {"path": SOCKET_FOLDER, "type": "Directory"}},
        ),
        init_containers=(copy,),
        notices=_unread(endpoint) + _unjoined(endpoint),
    )


def _lmcache(endpoint: Endpoint, group: Group, engine: Engine, config: OperatorConfig) -> Parts:
    """Return what LMCache is told: the user's file where there is one, else variables."""
    cache = endpoint.spec.kv_cache_spec
    assert cache is not None
    parts = Parts(environment=(variable("LMCACHE_TRACK_USAGE", "false"),))
    if connector_of(endpoint, config) == "tierline":
        is_of_a_file = not wants_store(endpoint, config)
        parts += Parts(notices=(_of_a_file() if is_of_a_file else _untested(engine),))
    if wants_store(endpoint, config):
        path = f"/dev/shm/{config.segment_name}"  # noqa: S108
        # As a file: a subPath of the folder that is not there yet would be made, as a folder.
        parts += Parts(
            volumes=({"name": _SEGMENT_VOLUME, "hostPath": {"path": path, "type": "File"}},),
            mounts=({"name": _SEGMENT_VOLUME, "mountPath": path},),
        )
    if cache.cache_config_file:
        named = (_named_by_path(engine),) if cache.enable_l2_cache else ()
        return parts + _from_file(endpoint, cache.cache_config_file) + Parts(notices=named)
    size = cache_size(endpoint, group.resources, config)
    l1_bytes = size.l1_bytes if cache.enable_l1_cache else TRANSIT_BYTES
    settings = {
        "CHUNK_SIZE": str(CHUNK_TOKENS),
        "LOCAL_CPU": str(cache.enable_l1_cache),
        "MAX_LOCAL_CPU_SIZE": _gib(l1_bytes // engine.processes) if l1_bytes is not None else None,
        "CACHE_POLICY": _L1_POLICIES.get(endpoint.annotation("eviction-policy") or ""),
    }
    if cache.enable_l2_cache:
        settings |= _l2(endpoint, engine, config)
    if cache.enable_l2_cache and not is_pinned(endpoint):
        parts += Parts(environment=(programs.field(POD_UID, "metadata.uid"),), notices=(_moving(),))
    parts += Parts(
        environment=tuple(variable(f"LMCACHE_{key}", value) for key, value in settings.items() if value is not None),
        notices=size.notices if cache.enable_l1_cache else (),
    )
    if "REMOTE_URL" in settings and cache.l2_cache_spec is not None and cache.l2_cache_spec.l2_cache_local_url:
        parts += Parts(notices=(_named_by_path(engine),))
    return parts + Parts(notices=_unbucketed(endpoint, engine, settings))


def joined(own: Manifest, ours: Manifest) -> Manifest | None:
    """Return the user's variable :data:`EXTRA_CONFIG` with ours, of which the user's settings win.

    ``None``: nothing can be joined to what it says.
    """
    given = _settings_in(own)
    return None if given is None else variable(EXTRA_CONFIG, json.dumps(json.loads(ours["value"]) | given))


def _settings_in(own: Manifest) -> dict[str, Any] | None:
    """Return the JSON object in a variable; ``None`` where it is none."""
    try:
        found = json.loads(own.get("value") or "{}") if "valueFrom" not in own else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _unbucketed(endpoint: Endpoint, engine: Engine, settings: Mapping[str, str | None]) -> tuple[Notice, ...]:
    """Return what is to be told where the user's own variables keep the bucket of the model from LMCache."""
    given = {each.name: each.manifest() for each in endpoint.spec.worker.environment_variables or ()}
    if "REMOTE_URL" in settings and "LMCACHE_REMOTE_URL" in given:
        return (_named_by_path(engine),)
    if "EXTRA_CONFIG" not in settings or EXTRA_CONFIG not in given or _settings_in(given[EXTRA_CONFIG]) is not None:
        return ()
    message = (
        f"spec.worker.environmentVariables: {EXTRA_CONFIG} is of valueFrom, or no JSON object, and nothing can be "
        "joined to it: what it says must name sagemaker_hyperpod_bucket, one of the model's own, else models that are "
        "loaded from the same path read each other's cache"
    )
    return (Notice("CacheReady", "BucketNotJoined", message),)


def _l2(endpoint: Endpoint, engine: Engine, config: OperatorConfig) -> dict[str, str | None]:
    cache = endpoint.spec.kv_cache_spec
    l2 = cache.l2_cache_spec if cache is not None else None
    if wants_redis(endpoint):
        return {"REMOTE_URL": redis_url(endpoint, config)}
    if l2 is not None and l2.l2_cache_local_url:
        return {"REMOTE_URL": l2.l2_cache_local_url}
    if not wants_store(endpoint, config):
        return {}
    connections = max(1, _CONNECTIONS_PER_MACHINE // engine.processes)
    extra = {
        "sagemaker_hyperpod_bucket": bucket(endpoint),
        "sagemaker_hyperpod_shared_memory_name": config.segment_name,
        "sagemaker_hyperpod_max_connections": 2 * connections,
        "sagemaker_hyperpod_max_connections_per_host": connections,
        "sagemaker_hyperpod_max_concurrent_requests": connections,
    }
    return {"REMOTE_URL": f"sagemaker-hyperpod://$(NODE_IP):{NODE_PORT}", "EXTRA_CONFIG": json.dumps(extra)}


def _from_file(endpoint: Endpoint, file: str) -> Parts:
    parts = Parts(environment=(variable("LMCACHE_CONFIG_FILE", file),))
    kubernetes = endpoint.spec.kubernetes
    volumes = (kubernetes.volumes or []) if kubernetes is not None else []
    if any(volume.name == CONFIG_VOLUME for volume in volumes):
        folder = str(PurePosixPath(file).parent)
        parts += Parts(mounts=({"name": CONFIG_VOLUME, "mountPath": folder, "readOnly": True},))
    return parts


def _events(endpoint: Endpoint, engine: Engine, config: OperatorConfig) -> Parts:
    """Return what has the engine tell routers what it holds, where they go by that, and where its node store does."""
    routing = endpoint.spec.intelligent_routing_spec
    if routing is None or not is_routed(endpoint) or routing.routing_strategy != "kvaware":
        return Parts()
    told = {}
    if wants_store(endpoint, config):
        told[f"{ANNOTATION_PREFIX}node-events"] = f"tcp://*:{EVENTS_PORT}?replay={EVENTS_PORT + 1}"
    events = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": f"tcp://*:{KV_EVENTS_PORT}",
        "replay_endpoint": f"tcp://*:{KV_REPLAY_PORT}",
    }
    if not says(engine.command_line, "--kv-events-config"):
        ranks = f"&ranks={engine.data_parallel_ranks}" if engine.data_parallel_ranks > 1 else ""
        told[f"{ANNOTATION_PREFIX}kv-events"] = f"tcp://*:{KV_EVENTS_PORT}?replay={KV_REPLAY_PORT}{ranks}"
    return Parts(arguments=(("--kv-events-config", json.dumps(events)),), annotations=told)


def _transfer(connectors: list[dict[str, Any]], engine: Engine) -> dict[str, Any]:
    """Return vLLM's ``--kv-transfer-config`` for one connector, or for several side by side."""
    transfer = (
        dict(connectors[0])
        if len(connectors) == 1
        else {
            "kv_connector": "MultiConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"connectors": connectors},
        }
    )
    if engine.version is not None and engine.version >= _FAILURE_POLICY_SINCE:
        transfer["kv_load_failure_policy"] = "recompute"  # its default fails the request
    return transfer


def _gib(size_bytes: int) -> str:
    """Return a size as LMCache takes it: whole GiB, or where it is small, tenths of one."""
    tenths = size_bytes * 10 // GIB
    return str(tenths // 10) if tenths >= 40 else str(tenths / 10)


def _not_vllm(endpoint: Endpoint) -> Notice:
    return Notice(
        "CacheReady",
        "NotVllm",
        f"nothing says that {endpoint.spec.worker.image} is vLLM: it is started without a cache; where it is, say "
        "tierline.ai/engine: vllm",
    )


def _of_a_file() -> Notice:
    return Notice(
        "CacheReady",
        "FileIsLmcaches",
        "spec.kvCacheSpec.cacheConfigFile is LMCache's: without enableL1Cache and enableL2Cache it alone says what is "
        "kept, and engines are joined by LMCache and not by our connector",
    )


def _unread(endpoint: Endpoint) -> tuple[Notice, ...]:
    cache = endpoint.spec.kv_cache_spec
    if cache is None or not cache.cache_config_file:
        return ()
    message = "spec.kvCacheSpec.cacheConfigFile is LMCache's, and our connector does not read it"
    return (Notice("CacheReady", "FileIsLmcaches", message),)


def _unjoined(endpoint: Endpoint) -> tuple[Notice, ...]:
    given = endpoint.spec.worker.environment_variables or ()
    if not any(each.name == PYTHON_PATH and each.value_from is not None for each in given):
        return ()
    message = (
        "spec.worker.environmentVariables: PYTHONPATH is of valueFrom, which nothing can be joined to: what it refers "
        f"to must name {CONNECTOR_FOLDER}, else vLLM does not find our connector and does not start"
    )
    return (Notice("WorkersReady", "PythonPathReferred", message),)


def _untested(engine: Engine) -> Notice:
    found = "of which the version is not known" if engine.version is None else "{}.{}".format(*engine.version)
    tested = ", ".join(f"{major}.{minor}" for major, minor in sorted(TESTED_VLLM))
    return Notice(
        "CacheReady",
        "ConnectorUntested",
        f"our connector is tested with vLLM {tested}, and the image has one {found}: it is joined by LMCache; "
        "where the image's tag does not say its version, say tierline.ai/engine-version",
    )


def _moving() -> Notice:
    return Notice(
        "CacheReady",
        "RevisionMoves",
        "without a commitSHA of huggingFaceModel, and where the Hub did not say which commit the main branch is, each "
        "pod has what that is when it starts, and another pod's keys and values may be another model's: in the node "
        "store each pod has a bucket of its own, and no Redis is made; with commitSHA, of a JumpStartModel in its "
        "catalogue, pods share what they compute",
    )


def _named_by_path(engine: Engine) -> Notice:
    return Notice(
        "CacheReady",
        "KeysNameThePath",
        f"LMCache's keys name the model by its path, {engine.model or 'as the engine is given it'}: another model "
        "that is loaded from the same path with the same L2 reads this one's cache; give each model a store or a path "
        "of its own, or use tieredstorage, where each has a bucket",
    )
