"""One look at one resource: get, validate, compute what is wanted, make it so, sweep up, observe, say.

Rule: each look begins from what the cluster says, so that it does not matter after which step the last one ended.
What cannot be written does not keep the others from being written.
"""

import base64
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from http import HTTPStatus
from math import inf
from typing import Any, NamedTuple

from tierline import logs
from tierline.errors import ClusterRefused, ClusterUnavailable, ConfigurationError, NotPublished
from tierline.kube.cluster import Cluster, Kind
from tierline.operator import names
from tierline.operator.capabilities import Capabilities
from tierline.operator.commits import HubCommits
from tierline.operator.config import OperatorConfig
from tierline.operator.controller import conditions, status
from tierline.operator.controller.capturing import capture_status
from tierline.operator.controller.children import Children, NameTaken
from tierline.operator.controller.conditions import Condition
from tierline.operator.controller.events import Events
from tierline.operator.controller.holding import grown, held, with_the_image_of
from tierline.operator.controller.keeping import SECRET, Keeper
from tierline.operator.controller.kinds import POD, Reference, children, newest, reference
from tierline.operator.controller.leaving import leaving, unfinished
from tierline.operator.controller.live import SHARED, Live
from tierline.operator.controller.observing import (
    Observation,
    deployment_status,
    observe,
    replicas,
    workers_of,
)
from tierline.operator.controller.planning import Plan, Planner
from tierline.operator.controller.registering import registration_status, standing
from tierline.operator.controller.settling import decisive, settle
from tierline.operator.controller.succeeding import still_needed
from tierline.operator.controller.workloads import rollout
from tierline.operator.endpoint import ANNOTATION_PREFIX, Endpoint
from tierline.operator.manifests import node_stores, store_removal
from tierline.operator.manifests.certificates import CERTIFICATE, certificate_secret_name, describe, has_certificate
from tierline.operator.manifests.desired import owner_labels, owner_reference
from tierline.operator.manifests.machines import Machines
from tierline.operator.manifests.manifest import Made, Manifest
from tierline.operator.manifests.routing import entrance_namespace, routing_is_enabled
from tierline.operator.manifests.secrets import Content
from tierline.operator.publishing import Published, Publisher, is_wanted
from tierline.operator.validation.changes import routing_changed

log = logs.get(__name__)

PAUSE = f"{ANNOTATION_PREFIX}pause"
"""An annotation; ``true`` leaves all children as they are."""
DELETING_SECONDS = 1.0
"""Between two looks at a resource whose children are being deleted."""
SUCCEEDED_SECONDS = 5.0
"""Between two looks at a Redis that another one succeeds, whether workers use it still."""
_SERVING = frozenset(
    ("Deployment", "Service", "Ingress", "Gateway", "HTTPRoute", "PersistentVolume", "PersistentVolumeClaim")
)
_LEADING_IN = frozenset(
    ("Service", "Ingress", "Gateway", "HTTPRoute", "ServiceAccount", "Role", "RoleBinding", "Secret", "NetworkPolicy")
)
PATIENCE_SECONDS = 60.0
"""So long, an API that says to ask again is asked again; then a resource says what it does not get."""


class Key(NamedTuple):
    """A resource; :data:`SHARED_KEY` is what endpoints share."""

    kind: str
    namespace: str
    name: str


SHARED_KEY = Key("", "", "")


@dataclass(frozen=True)
class _Outcome:
    """What came of making an endpoint's children."""

    made: Made
    failures: Mapping[Reference, str]
    certificates: Mapping[Reference, Content]
    published: Published | NotPublished | None = None
    """Where the certificate was written for clients, where the endpoint says so."""


class Reconciler:
    """Looks at resources.

    Parameters
    ----------
    cluster
        The way to the API.
    children
        What was seen of children.
    planner
        What is wanted.
    config
        The operator's.
    events
        Where transitions are told.
    shared_changed
        Called when what endpoints share may have to be otherwise.
    """

    def __init__(
        self,
        cluster: Cluster,
        children: Children,
        planner: Planner,
        config: OperatorConfig,
        events: Events,
        shared_changed: Callable[[], None],
    ) -> None:
        self.capabilities = Capabilities()
        """What the cluster has; set before the first look."""
        self.unlisted: frozenset[str] = frozenset()
        """Kinds that could not be listed yet: what is seen of them is not all that there is."""
        self.keeper = Keeper(cluster)
        self.endpoints: dict[Key, Endpoint | None] = {}
        """Of all resources that were looked at, as they were when they last could be; ``None`` where none knows that.

        What runs goes on when its resource begins to ask for what cannot be, and goes on needing what it shares.
        """
        self._uids: dict[Key, str] = {}
        """Of the same."""
        self.states: dict[Key, str] = {}
        self.status_writes = 0
        self._publisher = Publisher(config.s3_endpoint, config.s3_region, os.environ, time.monotonic)
        self._commits = HubCommits(cluster, config.hf_endpoint, time.monotonic)
        self._cluster = cluster
        self._children = children
        self._planner = planner
        self._config = config
        self._events = events
        self._shared_changed = shared_changed
        self._put_off_since: dict[str, float] = {}
        """By owner: since when its children could not be written because the API asked for patience."""

    async def reconcile(self, key: Key) -> float | None:
        """Look at a resource; return after how many seconds to look again, if nothing happens until then.

        Raises
        ------
        ClusterRefused, ClusterUnavailable
            To be tried again.
        """
        kind = Kind(names.API_VERSION, key.kind, f"{key.kind.lower()}s", is_namespaced=True)
        try:
            resource = await self._get(kind, key)
        except ClusterRefused as refused:
            # An API that does not know the kind yet, as when it has just started, says 404 as well, and not of what.
            if refused.status != HTTPStatus.NOT_FOUND or refused.reason != "NotFound":
                raise
            self._forget(key)
            return None
        if key.kind == names.REGISTRATION:
            await self._tell_of_registration(kind, resource)
            return None
        if resource["metadata"].get("deletionTimestamp"):
            return await self._finalize(kind, key, resource)
        plan = self._planner.plan(resource)
        made = Made()
        if plan.endpoint is not None:
            try:
                plan = replace(plan, endpoint=await self._settled(plan.endpoint))
                assert plan.endpoint is not None
                made = self._planner.desired(plan.endpoint, self.capabilities, self._config)
            except ConfigurationError as error:
                plan = replace(plan, endpoint=None, problems=(*plan.problems, str(error)))
        if plan.endpoint is not None and (problems := _turned(plan.endpoint)):
            plan = replace(plan, endpoint=None, problems=(*plan.problems, *problems))
        is_paused = (resource["metadata"].get("annotations") or {}).get(PAUSE) == "true"
        applied = self._applied(key, plan.endpoint) if is_paused else plan.endpoint
        self._take(key, resource["metadata"]["uid"], applied)
        if plan.endpoint is None:
            return await self._say(kind, key, resource, plan, [_invalid(plan)], {})
        if is_paused:
            outcome = _Outcome(made, {}, await self._shown(plan.endpoint, {}))
        else:
            resource = await self._with_finalizer(kind, resource, plan.endpoint, made)
            outcome = await self._make(plan.endpoint, made)
        return await self._tell(kind, key, resource, plan, outcome, is_paused=is_paused)

    async def reconcile_shared(self, unseen: Iterable[Key], *, is_listed: bool) -> float | None:
        """Make what endpoints share be what they want together; return after how many seconds to look again.

        Stores that some endpoints want and others need are not to shrink to the part of those that are known: while
        it is not known what all want, what is there stays, and stores come to further machines only.

        Parameters
        ----------
        unseen
            Resources that were not looked at yet; until they are, nothing is written, for that is soon.
        is_listed
            All kinds of resources could be listed.
        """
        if any(unseen):
            return None
        is_known = is_listed and not any(
            endpoint is None and self._children.of(self._uids[key]) for key, endpoint in self.endpoints.items()
        )
        wanted = sorted((each for each in self.endpoints.values() if each is not None), key=lambda each: each.uid)
        made = self._planner.shared(wanted, self.capabilities, self._config)
        stores = await self._daemon_set(node_stores.NAME, made)
        removing = await self._daemon_set(store_removal.NAME, made)
        made = Made(tuple(self._held(each, stores or removing) for each in made.manifests), made.notices)
        left = None
        if is_known:
            left = leaving(stores, removing, made.manifests, self._config, self.capabilities, datetime.now(UTC))
        labels = {"labels": {names.MANAGED_BY: names.FIELD_MANAGER}}
        secrets = self._planner.shared_secrets(wanted, self.capabilities, self._config)
        kept_secrets = await self.keeper.keep(
            secrets, labels, self._versions(SHARED), datetime.now(UTC), lambda: self._is_patient(SHARED)
        )
        failures = dict(kept_secrets.failures)
        keep = {*map(reference, made.manifests)}
        again_s = max(left.left_s, 0.0) if left is not None else inf
        if left is not None and left.left_s > 0:
            keep.add(reference(left.manifest))
            if refused := await self._bring(SHARED, Made((left.manifest,))):
                # Stores stay where they are, or nobody would know later where they have been.
                made = Made(tuple(each for each in made.manifests if each["kind"] != "DaemonSet"), made.notices)
                failures |= refused
        if not is_known and stores is not None:
            # What cannot be known may need what is there; who is known is not to wait for that.
            known = [each for each in made.manifests if reference(each) == reference(stores)]
            growing = [each for each in known if Machines.of(each) - Machines.of(stores)]
            failures |= await self._bring(SHARED, Made(tuple(grown(each, stores) for each in growing)))
        failures |= await self._bring(SHARED, made, only_missing=not is_known, is_put_off=bool(kept_secrets.put_off))
        if not is_known:
            log.warning("what endpoints share stays as it is: not all that want it are known", is_listed=is_listed)
        elif not failures and status.DELETING not in self.states.values():
            keep.update(found for found in self._children.of(SHARED) if found.kind == "Secret")
            if left is not None and left.left_s <= 0 and removing is not None:
                await self._give_up(removing)
            succeeded = self._still_needed(wanted) - keep
            await self._children.sweep(SHARED, keep | succeeded)
            if succeeded:
                again_s = min(again_s, SUCCEEDED_SECONDS)
        if failures:
            raise ClusterRefused("; ".join(failures.values()), HTTPStatus.UNPROCESSABLE_ENTITY)
        return again_s if again_s != inf else None

    def _held(self, manifest: Manifest, stores: Manifest | None) -> Manifest:
        """Return something that endpoints share as it is wanted, with what of it stays while it runs."""
        if names.REDIS_OF not in manifest["metadata"].get("labels", {}):
            return held(manifest, stores)
        if self._config.worker_updates == "at-once":
            return manifest
        return with_the_image_of(manifest, self._children.of(SHARED))

    def _still_needed(self, wanted: Iterable[Endpoint]) -> set[Reference]:
        pods = None if POD in self.unlisted else self._children.all(POD)
        return still_needed(self._children.of(SHARED), pods, wanted, self._children.of)

    async def _settled(self, endpoint: Endpoint) -> Endpoint:
        """Return an endpoint with what was decided for it; see :func:`~.settling.settle`."""
        for child in decisive(endpoint, self._config):
            if child.kind in self.unlisted and child not in self._children.of(endpoint.uid):
                await self._children.look_up(endpoint.uid, child)
        live = self._children.of(endpoint.uid)
        found = await settle(
            endpoint, live.values(), self._planner.stands, self.capabilities, self._config, self._commits
        )
        former = tuple(sorted(_router_namespaces(endpoint, live) - {entrance_namespace(endpoint, self._config)}))
        return replace(found, settled=replace(found.settled, former_router_namespaces=former))

    async def _daemon_set(self, name: str, made: Made) -> Manifest | None:
        """Return a DaemonSet as it is in the cluster, where it is wanted or was seen."""
        kind = newest(self._children.served, "DaemonSet")
        found = Reference("DaemonSet", self._config.namespace, name)
        if kind is None or (found not in self._children.of(SHARED) and found not in map(reference, made.manifests)):
            return None
        return await self._cluster.get(kind, found.namespace, name)

    async def _give_up(self, removing: Manifest) -> None:
        """Say on which machines node stores have left what nobody removes any more."""
        kind = newest(self._children.served, POD)
        assert kind is not None
        selector = ",".join(f"{key}={value}" for key, value in store_removal.LABELS.items())
        machines = unfinished(await self._cluster.list(kind, self._config.namespace, labels=selector))
        text = (
            f"{len(machines)} machine{' was' if len(machines) == 1 else 's were'} not reached, or a store runs there: "
            f"{', '.join(machines)}. What node stores left in memory there stays until the machine starts anew; by "
            "hand: tierline node remove-segment"
        )
        log.warning("what node stores left is not removed everywhere", machines=machines)
        await self._events.say(removing, "SegmentsLeft", text, is_warning=True)

    async def _get(self, kind: Kind, key: Key) -> dict[str, Any]:
        found = await self._cluster.ask("GET", kind.path(key.namespace, key.name))
        return {"apiVersion": kind.api_version, "kind": kind.name, **found}

    # Making ---------------------------------------------------------------------------------------------------------

    async def _make(self, endpoint: Endpoint, made: Made) -> _Outcome:
        owner = {
            "namespace": endpoint.namespace,
            "labels": owner_labels(endpoint),
            "ownerReferences": [owner_reference(endpoint)],
        }
        wanted = self._planner.kept_secrets(endpoint, self.capabilities, self._config)
        secrets = [Reference(SECRET.name, each.namespace, each.name) for each in wanted]
        kept = await self.keeper.keep(
            wanted, owner, self._versions(endpoint.uid), datetime.now(UTC), lambda: self._is_patient(endpoint.uid)
        )
        failures = kept.failures | await self._bring(endpoint.uid, made, is_put_off=bool(kept.put_off))
        secrets += await self._claim(endpoint, made, owner)
        keep = {*map(reference, made.manifests), *secrets}
        if failures:  # what serves goes when its successor is there, or could be but for it
            live = {found for found in self._children.of(endpoint.uid) if found.kind in _SERVING}
            keep.update(live - _in_the_way(live, failures))
        keep.update(self._until_routed(endpoint, made))
        await self._children.sweep(endpoint.uid, keep)
        shown = kept.shown if self._certificate_of(endpoint) in failures else await self._shown(endpoint, kept.shown)
        return _Outcome(made, failures, shown, await self._published(endpoint, shown))

    def _until_routed(self, endpoint: Endpoint, made: Made) -> set[Reference]:
        """Return a router that is elsewhere than the wanted one, and what leads to it, until that one is available.

        It is where ``router_placement`` was another one. Not so workers: their successors may need the accelerators.
        """
        live = self._children.of(endpoint.uid)
        wanted = {*map(reference, made.manifests)}
        name = names.router_name(endpoint.name, endpoint.namespace)
        routers = {found for found in {*live, *wanted} if (found.kind, found.name) == ("Deployment", name)}
        former, successors = routers - wanted, routers & wanted
        if all(rollout(conditions.ROUTER, each.name, live.get(each), ()).status == "True" for each in successors):
            return set()
        places = {each.namespace for each in former}
        return former | {found for found in live if found.kind in _LEADING_IN and found.namespace in places}

    async def _claim(self, endpoint: Endpoint, made: Made, owner: Mapping[str, Any]) -> list[Reference]:
        """Have the Secrets that cert-manager has made for an endpoint go with it; return which ones it makes."""
        certificates = [manifest for manifest in made.manifests if manifest["kind"] == "Certificate"]
        wanted = [
            Reference(SECRET.name, manifest["metadata"]["namespace"], manifest["spec"]["secretName"])
            for manifest in certificates
        ]
        for each in wanted:
            if each in self._children.of(endpoint.uid):
                continue
            metadata = ((await self._cluster.get(SECRET, each.namespace, each.name)) or {}).get("metadata", {})
            if (metadata.get("labels") or {}).get(names.OWNER_UID) != endpoint.uid:
                continue  # it is not there yet, or is somebody else's
            change: dict[str, Any] = {"resourceVersion": metadata["resourceVersion"], "labels": owner["labels"]}
            if each.namespace == endpoint.namespace:
                others = [found for found in metadata.get("ownerReferences", ()) if found["uid"] != endpoint.uid]
                # Its controller may be the Certificate, as cert-manager can be told; an object has one.
                ours = [{**reference, "controller": False} for reference in owner["ownerReferences"]]
                change["ownerReferences"] = [*others, *ours]
            try:
                await self._cluster.merge(SECRET, each.namespace, each.name, {"metadata": change})
            except ClusterRefused as refused:
                if refused.is_passing:
                    raise
                log.warning("a Secret of cert-manager's is not ours to delete", secret=str(each), why=str(refused))
        return wanted

    async def _shown(self, endpoint: Endpoint, kept: Mapping[Reference, Content]) -> Mapping[Reference, Content]:
        """Return what of Secrets may be shown, with the certificate that cert-manager has made, where it makes it."""
        found = self._certificate_of(endpoint)
        if not has_certificate(endpoint) or found in kept:
            return kept
        secret = await self._cluster.get(SECRET, found.namespace, found.name)
        data = (secret or {}).get("data") or {}
        content = {key: base64.b64decode(value) for key, value in data.items() if key.endswith(".crt")}
        return {**kept, found: content}

    async def _published(
        self, endpoint: Endpoint, certificates: Mapping[Reference, Content]
    ) -> Published | NotPublished | None:
        content = certificates.get(self._certificate_of(endpoint), {})
        if not is_wanted(endpoint) or CERTIFICATE not in content:
            return None
        try:
            return await self._publisher.keep(endpoint, content)
        except NotPublished as error:
            return error

    def _certificate_of(self, endpoint: Endpoint) -> Reference:
        return Reference(SECRET.name, entrance_namespace(endpoint, self._config), certificate_secret_name(endpoint))

    async def _bring(
        self, owner: str, made: Made, *, only_missing: bool = False, is_put_off: bool = False
    ) -> dict[Reference, str]:
        failures = {}
        for manifest in made.manifests:
            try:
                await self._children.bring(owner, manifest, only_missing=only_missing)
            except (NameTaken, ClusterRefused, ClusterUnavailable) as error:
                # Silence may be that of a webhook which is asked about one kind alone.
                is_passing = not isinstance(error, NameTaken) and (
                    isinstance(error, ClusterUnavailable) or error.is_passing
                )
                is_put_off |= is_passing
                if is_passing and self._is_patient(owner):  # nor is it asked for the others
                    raise
                failures[reference(manifest)] = str(error)
                log.warning("a child cannot be written", child=str(reference(manifest)), why=str(error))
        if not is_put_off:
            self._put_off_since.pop(owner, None)
        return failures

    def _is_patient(self, owner: str) -> bool:
        now = time.monotonic()
        return now - self._put_off_since.setdefault(owner, now) < PATIENCE_SECONDS

    def _versions(self, owner: str) -> dict[Reference, str]:
        return {found: live.metadata.resource_version for found, live in self._children.of(owner).items()}

    async def _with_finalizer(
        self, kind: Kind, resource: dict[str, Any], endpoint: Endpoint, made: Made
    ) -> dict[str, Any]:
        """Have the resource wait for us when it is deleted, if anything of it is where no owner reference reaches."""
        is_outside = any(manifest["metadata"].get("namespace") != endpoint.namespace for manifest in made.manifests)
        if not is_outside or names.FINALIZER in resource["metadata"].get("finalizers", ()):
            return resource
        return await self._set_finalizers(
            kind, resource, [*resource["metadata"].get("finalizers", ()), names.FINALIZER]
        )

    async def _set_finalizers(self, kind: Kind, resource: dict[str, Any], finalizers: list[str]) -> dict[str, Any]:
        metadata = resource["metadata"]
        change = {"metadata": {"finalizers": finalizers, "resourceVersion": metadata["resourceVersion"]}}
        return resource | await self._cluster.merge(kind, metadata["namespace"], metadata["name"], change)

    # Ending ---------------------------------------------------------------------------------------------------------

    async def _finalize(self, kind: Kind, key: Key, resource: dict[str, Any]) -> float | None:
        metadata = resource["metadata"]
        self._forget(key)
        self.states[key] = status.DELETING
        if names.FINALIZER not in metadata.get("finalizers", ()):
            return None
        left = await self._outside(metadata["namespace"], metadata["uid"])
        for child_kind, child in left:
            if not child["metadata"].get("deletionTimestamp"):
                name, namespace = child["metadata"]["name"], child["metadata"].get("namespace")
                await self._cluster.delete(child_kind, namespace, name)
                self._children.writes["delete", child_kind.name] += 1
        # What a finalizer of its own holds back may wait for what goes only after the resource: claims of volumes.
        if any(not child["metadata"].get("deletionTimestamp") for _, child in left):
            said = {**resource.get("status", {}), "state": status.DELETING}
            if said != resource.get("status"):
                await self._write_status(kind, resource, said)
            return DELETING_SECONDS
        finalizers = [each for each in metadata["finalizers"] if each != names.FINALIZER]
        await self._set_finalizers(kind, resource, finalizers)
        log.info("what no owner reference reaches is gone", resource=f"{key.kind} {key.namespace}/{key.name}")
        return None

    async def _outside(self, namespace: str, uid: str) -> list[tuple[Kind, dict[str, Any]]]:
        """Return what a resource has outside its namespace; asked of the API, for what was seen may be too old."""
        found = []
        for kind in children(self._children.served):
            if kind.is_namespaced and self._config.namespace == namespace:
                continue
            within = self._config.namespace if kind.is_namespaced else None
            listed = await self._cluster.list(kind, within, labels=f"{names.OWNER_UID}={uid}")
            found += [(kind, child) for child in listed if kind.name != "Pod"]
        return found

    def _applied(self, key: Key, endpoint: Endpoint | None) -> Endpoint | None:
        """Return a paused endpoint if it is known to be as it was applied last; ``None``: what is known of it stays.

        Nobody has looked at it since this operator leads: as its pods stand, nothing was changed that they are made by.
        """
        is_known = self.endpoints.get(key) is not None
        return endpoint if not is_known and endpoint is not None and endpoint.settled.pods.template else None

    def _take(self, key: Key, uid: str, endpoint: Endpoint | None) -> None:
        former = self.endpoints.get(key)
        if self._uids.get(key, uid) != uid:  # deleted and made anew between two looks
            self._forget(key)
        self._uids[key] = uid
        if key not in self.endpoints or (endpoint is not None and endpoint != former):
            self.endpoints[key] = endpoint
            self._shared_changed()

    def _forget(self, key: Key) -> None:
        self.endpoints.pop(key, None)
        if (uid := self._uids.pop(key, None)) is not None:
            self._children.forget(uid)
            self.keeper.forget(uid)
            self._publisher.forget(uid)
            self._commits.forget(uid)
            self._put_off_since.pop(uid, None)
        self.states.pop(key, None)
        self._shared_changed()

    # Saying ---------------------------------------------------------------------------------------------------------

    async def _tell(
        self, kind: Kind, key: Key, resource: dict[str, Any], plan: Plan, outcome: _Outcome, *, is_paused: bool
    ) -> float | None:
        endpoint = plan.endpoint
        assert endpoint is not None
        live = self._children.of(endpoint.uid)
        found = observe(
            Observation(
                endpoint=endpoint,
                made=outcome.made,
                live=live,
                shared=self._children.of(SHARED),
                failures=outcome.failures,
            )
        )
        workers = workers_of(endpoint)
        said: dict[str, Any] = {
            "replicas": replicas(live, workers),
            "selector": f"{names.APP}={endpoint.name}",
            "metricsStatus": _metrics(endpoint),
        }
        if certificate := _certificate(outcome.certificates, self._certificate_of(endpoint)):
            said["tlsCertificate"] = certificate
            is_expired = certificate["certificateHealth"] == "Expired"
            message = f"valid until {certificate['lastCertExpiryTime']}"
            match outcome.published:
                case Published(bucket, keys):
                    certificate |= {"tlsCertificateOutputS3Bucket": bucket, "tlsCertificateS3Keys": list(keys)}
                case NotPublished() as reason:
                    message = f"{message}; not written to S3: {reason}"
            found = [each for each in found if each.type != conditions.TLS] + [
                Condition(
                    conditions.TLS,
                    "False" if is_expired else "True",
                    certificate["certificateHealth"],
                    "; ".join([message, *(each.message for each in found if each.type == conditions.TLS)]),
                    is_trouble=is_expired,
                )
            ]
        listed = [_valid(plan), *found, *_of_resource(plan, endpoint, is_paused=is_paused)]
        if endpoint.spec.endpoint_name:
            registered, state = _registration(found)
            listed.append(registered)
            said["endpoints"] = {"sagemaker": {"state": state}}
        former = resource.get("status") or {}
        pods = [each for found, each in live.items() if found.kind == POD]
        if captured := capture_status(endpoint, pods, former.get("dataCaptureStatus") or {}, datetime.now(UTC)):
            said["dataCaptureStatus"] = captured
        if endpoint.spec.dns_config is not None:
            message = "Amazon Route 53 is on AWS only, and nobody looks there; point the name at the Ingress yourself"
            said["dnsStatus"] = {"managedByOperator": False, "message": message}
        deployment = {"name": workers[0].name}
        if current := status.object_status(deployment_status(live, workers)):
            deployment |= {"status": current}  # type: ignore[dict-item]
        said["deploymentStatus"] = deployment
        again_s = await self._say(kind, key, resource, plan, listed, said)
        if outcome.failures:
            raise ClusterRefused("; ".join(outcome.failures.values()), HTTPStatus.UNPROCESSABLE_ENTITY)
        return again_s

    async def _say(
        self,
        kind: Kind,
        key: Key,
        resource: dict[str, Any],
        plan: Plan,
        found: list[Condition],
        said: dict[str, Any],
    ) -> float | None:
        """Write the status if it is not so already, and tell of what has changed."""
        former, generation, now = resource.get("status") or {}, resource["metadata"]["generation"], datetime.now(UTC)
        ready = conditions.rolled_up(found)
        allowed_s = plan.endpoint.spec.max_deploy_time_in_seconds if plan.endpoint is not None else 0
        progress = status.progress(
            former, ready, generation=generation, allowed_s=allowed_s, now=now, is_refused=plan.endpoint is None
        )
        if progress.state == status.FAILED and plan.endpoint is not None:
            message = f"not ready {allowed_s} s after the deployment began. {ready.message}"
            ready = Condition(conditions.READY, "False", status.DEADLINE, message, is_trouble=True)
        self.states[key] = progress.state
        if not said:  # what was last known of what still runs
            said = {each: former[each] for each in former if each not in ("state", "conditions", "observedGeneration")}
            said.setdefault("deploymentStatus", {"name": names.worker_name(key.name)})
        listed = [ready, *found]
        deployment = {
            **said["deploymentStatus"],
            "lastUpdated": progress.since,
            "deploymentObjectOverallState": progress.state,
            "reason": ready.reason,
            "message": ready.message[: conditions.LONGEST_MESSAGE],
        }
        told = {
            **said,
            "state": progress.state,
            "observedGeneration": generation,
            "conditions": conditions.written(listed, former.get("conditions", ()), generation, status.stamp(now)),
            "deploymentStatus": deployment,
        }
        if told != former:
            await self._write_status(kind, resource, told)
            for condition in conditions.transitions(listed, former.get("conditions", ())):
                await self._events.tell(resource, condition)
            if former.get("observedGeneration") != generation:
                for warning in plan.warnings:
                    await self._events.say(resource, "Warning", warning, is_warning=True)
        return progress.left_s

    async def _tell_of_registration(self, kind: Kind, resource: dict[str, Any]) -> None:
        found, former = standing(self._planner.plan(resource)), resource.get("status") or {}
        told = registration_status(resource, found, datetime.now(UTC))
        if told == former or resource["metadata"].get("deletionTimestamp"):
            return
        await self._write_status(kind, resource, told)
        for condition in conditions.transitions(found, former.get("conditions", ())):
            await self._events.tell(resource, condition)

    async def _write_status(self, kind: Kind, resource: dict[str, Any], said: Mapping[str, Any]) -> None:
        metadata = resource["metadata"]
        body = {**resource, "status": said}
        await self._cluster.ask("PUT", f"{kind.path(metadata['namespace'], metadata['name'])}/status", body=body)
        self.status_writes += 1


def _in_the_way(live: Iterable[Reference], failures: Mapping[Reference, str]) -> set[Reference]:
    """Return an Ingress for whose sake its successor in another namespace is refused, where nothing else is refused.

    ingress-nginx lets two of different namespaces have no host and path in common: ``host "_" and path "/" is already
    defined in ingress NAMESPACE/NAME``. Each would wait for the other for ever.
    """
    if any(failed.kind != "Ingress" for failed in failures):
        return set()
    named = {word.strip("\"'`.,;:()") for why in failures.values() for word in why.split()}
    return {each for each in live if each.kind == "Ingress" and f"{each.namespace}/{each.name}" in named}


def _router_namespaces(endpoint: Endpoint, live: Mapping[Reference, Live]) -> set[str]:
    """Return where an endpoint has a router, or pods of one that finish what they have begun."""
    name = names.router_name(endpoint.name, endpoint.namespace)
    return {
        found.namespace
        for found, each in live.items()
        if (found.kind, found.name) == ("Deployment", name)
        or (found.kind == POD and (each.metadata.labels or {}).get(names.APP) == name)
    }


def _invalid(plan: Plan) -> Condition:
    return Condition(conditions.VALIDATED, "False", "Invalid", "; ".join(plan.problems), is_trouble=True)


def _turned(endpoint: Endpoint) -> tuple[str, ...]:
    """Return what is wrong where routing is turned on or off, which no webhook may have refused.

    Clients know the address of a router, or of the workers, and keys and limits are the router's.
    """
    settled = endpoint.settled.pods.routing
    if not settled:
        return ()
    return tuple(map(str, routing_changed(was=settled == "enabled", is_now=routing_is_enabled(endpoint))))


def _valid(plan: Plan) -> Condition:
    if plan.warnings:
        return Condition(conditions.VALIDATED, "True", "Warnings", "; ".join(plan.warnings))
    return Condition(conditions.VALIDATED, "True", "Valid", "every rule is kept")


def _of_resource(plan: Plan, endpoint: Endpoint, *, is_paused: bool) -> Iterable[Condition]:
    if plan.unsupported:
        yield Condition(conditions.UNSUPPORTED, "True", "WithoutEffect", "; ".join(plan.unsupported))
    if is_paused:
        message = f"annotation {PAUSE} of {endpoint.kind} {endpoint.name}: nothing is changed until it is gone"
        yield Condition(conditions.PAUSED, "True", "Annotated", message)


def _registration(found: Iterable[Condition]) -> tuple[Condition, str]:
    """Return how the endpoint of that name stands, which our router serves in the place of SageMaker."""
    router = next((each for each in found if each.type == conditions.ROUTER), None)
    kind = conditions.REGISTERED
    if router is None:
        message = "without intelligentRoutingSpec there is no router that would serve SageMaker's API"
        return Condition(kind, "False", "NoRouter", message, is_trouble=True), "CreationFailed"
    if router.status != "True":
        return Condition(
            kind, "False", "RouterNotReady", "the router that serves it is not ready"
        ), "CreationInProgress"
    message = "the router serves SageMaker's API under that name; Amazon's own knows nothing of it"
    return Condition(kind, "True", "ServedByRouter", message), "CreationCompleted"


def _metrics(endpoint: Endpoint) -> dict[str, Any]:
    metrics = endpoint.spec.metrics
    if metrics is None:
        return {"enabled": True, "state": "Enabled"}
    if not metrics.enabled:
        return {"enabled": False, "state": "Disabled"}
    said: dict[str, Any] = {
        "enabled": True,
        "state": "Enabled",
        "metricsScrapeIntervalSeconds": metrics.metrics_scrape_interval_seconds,
    }
    if metrics.model_metrics is not None:
        said["modelMetrics"] = {"path": metrics.model_metrics.path, "port": metrics.model_metrics.port}
    return said


def _certificate(certificates: Mapping[Reference, Content], shown: Reference) -> dict[str, Any] | None:
    """Return what a status says of the certificate that clients are shown."""
    content = certificates.get(shown, {})
    if CERTIFICATE not in content:
        return None
    facts = describe(content[CERTIFICATE], datetime.now(UTC))
    return {
        "certificateName": shown.name,
        "certificateDomainNames": list(facts.names),
        "certificateHealth": facts.health,
        "issuerName": facts.issuer,
        "lastCertExpiryTime": status.stamp(facts.expires),
    }
