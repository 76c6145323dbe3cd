"""Which caches mean the same: a name for what an endpoint's keys and values are of.

LMCache's keys name the model by its path, which is the same in every pod: ``/opt/ml/model``. So who reads another one's
cache under such a key decodes from another model's numbers, and nobody notices.
"""

import hashlib
import json
from typing import Any

from tierline.operator.endpoint import Endpoint
from tierline.router.discovery.kubernetes import OWN_WEIGHTS

POD_UID = "TIERLINE_POD_UID"
"""Variable of an engine whose bucket is its pod's alone, and in the name of that bucket: ``$(TIERLINE_POD_UID)``."""
_WITHOUT_MEANING = ("resources", "probes", "requestLimits", "modelInvocationPort")
"""Fields of ``worker`` that change nothing in what the engine computes."""


def bucket(endpoint: Endpoint) -> str:
    """Return the node store's bucket for an endpoint's objects of LMCache.

    It is another one as soon as anything may have changed what the numbers mean: the endpoint, its model and where
    that comes from, and whatever says how the engine runs. A cache that is lost is computed again. Where pods may
    have other files each, each has a bucket of its own, whose name has :data:`POD_UID` in it.
    """
    shared = f"{endpoint.namespace}-{endpoint.name}-{digest(endpoint)}"
    return shared if is_pinned(endpoint) else f"{shared}-$({POD_UID})"


def is_pinned(endpoint: Endpoint) -> bool:
    """Whether all pods of an endpoint have the same files, as far as its spec can say so.

    The main branch of a repository on the Hub is what it is when a pod starts, unless a commit was settled on.
    """
    return endpoint.hub_model is None or endpoint.commit is not None


def weights(endpoint: Endpoint) -> str | None:
    """Return what the KV of prefill and of decode is of, which are paired where it is the same.

    :data:`OWN_WEIGHTS` where it is not known of a pod, which then takes over no other one's; ``None`` where there are
    not the two.
    """
    if endpoint.spec.pd_spec is None:
        return None
    return digest(endpoint) if is_pinned(endpoint) else OWN_WEIGHTS


def digest(endpoint: Endpoint) -> str:
    """Return the part of :func:`bucket` that tells it from all others."""
    spec = endpoint.spec
    source = spec.model_source_config.manifest()
    source.pop("prefetchEnabled", None)  # the files are the same
    if endpoint.commit is not None:
        source["huggingFaceModel"] = {**source["huggingFaceModel"], "commitSHA": endpoint.commit}
    worker = {key: value for key, value in spec.worker.manifest().items() if key not in _WITHOUT_MEANING}
    pairs = spec.pd_spec
    identity = {
        # Two names joined by a hyphen are those of other endpoints too, and a volume's name is its namespace's own.
        "endpoint": [endpoint.namespace, endpoint.name],
        "model": [spec.model_name, spec.model_version],
        "source": source,
        "worker": worker,
        # Of both, since what prefill computes is for decode.
        "roles": None if pairs is None else [pairs.prefill_spec.args, pairs.decoding_spec.args],
        "pod": _pod(endpoint),
        "mounts": endpoint.annotation("volume-mounts"),
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def _pod(endpoint: Endpoint) -> list[Any]:
    """Return what the user puts into the pod: the volume may have the model, an init container may change it."""
    kubernetes = endpoint.spec.kubernetes
    if kubernetes is None:
        return []
    return [
        [volume.manifest() for volume in kubernetes.volumes or ()],
        [container.manifest() for container in kubernetes.init_containers or ()],
    ]
