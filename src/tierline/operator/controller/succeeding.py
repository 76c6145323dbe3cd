"""A Redis that another one succeeds: it stays until its workers are replaced, and for those that still use it.

Rule: who uses which is read from the cluster, of pods' own labels. A Redis that is kept too long holds memory; one that
goes too early takes a warm cache from workers that serve.
"""

from collections.abc import Callable, Iterable, Mapping

from tierline.operator import names
from tierline.operator.controller.kinds import Reference
from tierline.operator.controller.live import Live
from tierline.operator.controller.observing import workers_of
from tierline.operator.controller.workloads import is_replaced
from tierline.operator.endpoint import Endpoint

_ENDED = ("Succeeded", "Failed")
"""Phases of pods that are there only to be read of."""


def still_needed(
    shared: Mapping[Reference, Live],
    pods: Iterable[Live] | None,
    endpoints: Iterable[Endpoint],
    children: Callable[[str], Mapping[Reference, Live]],
) -> set[Reference]:
    """Return the objects of those Redis that a pod uses, or whose endpoint's workers are not replaced yet.

    The latter for who takes a change back that does not come up: he finds the cache that he had.

    Parameters
    ----------
    shared
        What endpoints share, as it was seen.
    pods
        All of our endpoints; ``None``: they could not be listed, and any Redis may be in use.
    endpoints
        All that there are.
    children
        Of the endpoint with a uid.
    """
    used = {_label(pod, names.USES_REDIS) for pod in pods or () if (pod.status or {}).get("phase") not in _ENDED}
    changing = {each.uid for each in endpoints if not _are_replaced(each, children(each.uid))}
    return {
        found
        for found, live in shared.items()
        if (uid := _label(live, names.REDIS_OF)) is not None
        and (pods is None or uid in changing or _label(live, names.APP) in used)
    }


def _are_replaced(endpoint: Endpoint, live: Mapping[Reference, Live]) -> bool:
    found = [live.get(each) for each in workers_of(endpoint)]
    return all(each is not None and is_replaced(each) for each in found)


def _label(live: Live, name: str) -> str | None:
    return (live.metadata.labels or {}).get(name)
