"""``/admin``: what the endpoints are and do, changes of their set, the last decisions, and what would be decided.

Everything here is answered between two requests of the traffic; an explanation may wait for a prompt's tokens, as long
as a request would.
"""

from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from math import isinf
from typing import TYPE_CHECKING, NamedTuple, TypeAlias
from urllib.parse import parse_qs

import msgspec

from tierline.errors import ConfigurationError, EndpointConflict
from tierline.router import pairs
from tierline.router.admin.access import AdminAccess
from tierline.router.admin.documents import (
    AffinityState,
    CacheResetList,
    DecisionList,
    EndpointList,
    EndpointState,
    Explanation,
    PassedOver,
)
from tierline.router.admin.resets import reset
from tierline.router.decisions import DecisionLog, choice_of
from tierline.router.endpoints import Endpoint
from tierline.router.http.heads import BadMessage, RequestHead
from tierline.router.http.splicing import UNREADABLE
from tierline.router.membership import Membership
from tierline.router.pairs import Pairing
from tierline.router.prompt import read_fields
from tierline.router.specs import plain_url, read_spec
from tierline.router.strategies.base import Decision, RoutingRequest
from tierline.router.strategies.kvaware import KvAware
from tierline.router.tokens import Question, TokenLadder
from tierline.router.workers.messages import Change

if TYPE_CHECKING:
    from tierline.router.proxy.services import Services
    from tierline.router.workers.team import Team

PREFIX = b"/admin/"
DECISIONS_LISTED = 50
"""Decisions in an answer to a question without ``limit``."""


class Reply(NamedTuple):
    """An answer: its status and document, or what is wrong."""

    status: HTTPStatus
    document: msgspec.Struct | None = None
    message: str = ""
    allowed: bytes = b""
    """Methods, where the status is 405."""
    page: bytes = b""
    """A text, where it is no document."""


Answer: TypeAlias = Reply | Awaitable[Reply]


class AdminApi:
    """Answers requests under ``/admin/``.

    Parameters
    ----------
    access
        Who may.
    services, membership
        What is asked about, and what changes it.
    """

    def __init__(self, access: AdminAccess, services: "Services", membership: Membership) -> None:
        self._access = access
        self._services = services
        self._membership = membership
        self._routes: dict[bytes, dict[bytes, Callable[[RequestHead, bytes], Answer]]] = {
            b"/admin/endpoints": {b"GET": self._endpoints, b"POST": self._add, b"DELETE": self._remove},
            b"/admin/endpoints/drain": {b"POST": self._drain},
            b"/admin/endpoints/reset": {b"POST": self._reset},
            b"/admin/affinity": {b"GET": self._affinity, b"POST": self._turn_affinity},
            b"/admin/decisions": {b"GET": self._decisions},
            b"/admin/explain": {b"POST": self._explain},
        }
        if services.team is not None:
            services.team.answer("affinity", lambda: msgspec.json.encode(self.own_affinity()))
            services.team.answer("endpoints", lambda: msgspec.json.encode(self.own_endpoints()))
            services.team.answer("decisions", lambda: msgspec.json.encode(self._own_decisions()))

    def answer(self, head: RequestHead, body: bytes) -> Answer:
        """Return the answer to a request; nobody learns what there is who may not use it."""
        refusal = self._access.refusal(head)
        if refusal is not None:
            return Reply(refusal.status, message=refusal.message)
        methods = self._routes.get(head.path)
        if methods is None:
            return _wrong(HTTPStatus.NOT_FOUND, f"There is no {head.path.decode('latin-1')} here.")
        work = methods.get(head.method)
        if work is None:
            allowed = b", ".join(methods)
            message = f"{head.path.decode('latin-1')} takes {allowed.decode()}, not {head.method.decode('latin-1')}."
            return Reply(HTTPStatus.METHOD_NOT_ALLOWED, message=message, allowed=allowed)
        try:
            return work(head, body)
        except (BadMessage, ConfigurationError) as error:
            return _wrong(HTTPStatus.BAD_REQUEST, str(error))

    # Endpoints --------------------------------------------------------------------------------------------------------

    def _endpoints(self, head: RequestHead, body: bytes) -> Answer:  # noqa: ARG002
        own, team = self.own_endpoints(), self._services.team
        return Reply(HTTPStatus.OK, own) if team is None else _of_all(team, "endpoints", own)

    def own_endpoints(self) -> EndpointList:
        """Return what this process knows of its endpoints."""
        services = self._services
        return EndpointList(
            [self._state(endpoint) for endpoint in services.endpoints.all], services.alias_watch.states()
        )

    def _add(self, head: RequestHead, body: bytes) -> Answer:  # noqa: ARG002
        try:
            content = msgspec.json.decode(body)
        except UNREADABLE as error:
            return _wrong(HTTPStatus.BAD_REQUEST, f"request body: {error}")
        try:
            if isinstance(content, dict) and "api_key_file" in content:  # it would have any file read, and sent
                raise ConfigurationError("endpoint.api_key_file", content["api_key_file"], "in the endpoints file only")
            spec = read_spec(content, "endpoint")
            endpoint = self._membership.add(spec, "admin")
        except EndpointConflict as error:
            return _wrong(HTTPStatus.CONFLICT, str(error))
        reply = Reply(HTTPStatus.CREATED, self._state(endpoint))
        return self._changed(reply, Change("add", endpoint.url, spec.model_dump_json().encode()))

    def _drain(self, head: RequestHead, body: bytes) -> Answer:  # noqa: ARG002
        endpoint = self._named(head)
        if endpoint is None:
            return _wrong(HTTPStatus.NOT_FOUND, "There is no such endpoint.")
        self._membership.drain(endpoint)
        return self._changed(Reply(HTTPStatus.OK, self._state(endpoint)), Change("drain", endpoint.url))

    def _remove(self, head: RequestHead, body: bytes) -> Answer:  # noqa: ARG002
        endpoint = self._named(head)
        if endpoint is None:
            return _wrong(HTTPStatus.NOT_FOUND, "There is no such endpoint.")
        state = self._state(endpoint)
        self._membership.remove(endpoint)
        return self._changed(Reply(HTTPStatus.OK, state), Change("remove", endpoint.url))

    def _reset(self, head: RequestHead, body: bytes) -> Answer:  # noqa: ARG002
        if _parameter(head, "url") is None:
            return self._reset_of(self._services.endpoints.all)
        endpoint = self._named(head)
        if endpoint is None:
            return _wrong(HTTPStatus.NOT_FOUND, "There is no such endpoint.")
        return self._reset_of([endpoint])

    async def _reset_of(self, endpoints: Sequence[Endpoint]) -> Reply:
        services = self._services
        found = await reset(endpoints, services.endpoint_keys, services.endpoint_tls)
        reply = Reply(HTTPStatus.OK, CacheResetList(found))
        for endpoint, each in zip(endpoints, found, strict=True):
            if each.is_empty and services.endpoints.find(each.url) is endpoint:  # it may have left meanwhile
                services.choosing.forget(endpoint)
                if services.team is not None:
                    reply = await _once_all_have(services.team, Change("reset", each.url), reply)
        return reply

    def _changed(self, reply: Reply, change: Change) -> Answer:
        """Return ``reply`` when all workers have made the change."""
        team = self._services.team
        return reply if team is None else _once_all_have(team, change, reply)

    def _named(self, head: RequestHead) -> Endpoint | None:
        url = _parameter(head, "url")
        if url is None:
            raise ConfigurationError("url", None, "an endpoint's URL, as in ?url=http://127.0.0.1:8001")
        try:
            return self._services.endpoints.find(plain_url(url))
        except ValueError as error:
            raise ConfigurationError("url", url, str(error)) from None

    def _state(self, endpoint: Endpoint) -> EndpointState:
        services, now = self._services, self._services.clock()
        return EndpointState(
            url=endpoint.url,
            state=_state_of(endpoint, now),
            source=endpoint.source,
            weight=endpoint.weight,
            roles=sorted(endpoint.roles),
            models=None if endpoint.models is None else sorted(endpoint.models),
            kv_events=endpoint.kv_events,
            node_events=endpoint.node_events,
            weights=endpoint.weights,
            joined_s=None if isinf(endpoint.joined_at) else now - endpoint.joined_at,
            ejections=endpoint.ejections,
            ejected_for_s=endpoint.ejected_for_s(now),
            rests_for_s=endpoint.rests_for_s(now),
            capacity_blocks=endpoint.capacity_blocks,
            block_tokens=endpoint.block_tokens,
            inflight=endpoint.own_inflight,
            inflight_elsewhere=0,  # the supervisor knows
            queued_tokens=endpoint.own_queued_tokens,
            prefill_tokens_per_second=endpoint.prefill_rate,
            idle_connections=len(services.pools[endpoint.position]),
        )

    # Affinity ---------------------------------------------------------------------------------------------------------

    def _affinity(self, head: RequestHead, body: bytes) -> Answer:  # noqa: ARG002
        own, team = self.own_affinity(), self._services.team
        return Reply(HTTPStatus.OK, own) if team is None else _of_all(team, "affinity", own)

    def own_affinity(self) -> AffinityState:
        """Return which strategies choose in this process."""
        choosing = self._services.choosing
        return AffinityState(turned_off=choosing.turned_off, arms=choosing.states())

    def _turn_affinity(self, head: RequestHead, body: bytes) -> Answer:
        services, model, to = self._services, _parameter(head, "model") or "", _parameter(head, "to")
        if to not in ("on", "off"):
            raise ConfigurationError("to", to, "on or off")
        model = services.aliases.get(model, model)
        if to == "off":
            if model and not services.endpoints.serving(model):
                return _wrong(HTTPStatus.NOT_FOUND, f"No endpoint serves the model {model}.")
            services.choosing.turn_off(model)
        else:
            services.choosing.turn_on(model)
        if services.team is None:
            return self._affinity(head, body)
        return self._turned_everywhere(services.team, Change(to, model))

    async def _turned_everywhere(self, team: "Team", change: Change) -> Reply:
        refusal = await _once_all_have(team, change, Reply(HTTPStatus.OK))
        return refusal if refusal.message else await _of_all(team, "affinity", self.own_affinity())

    # Decisions --------------------------------------------------------------------------------------------------------

    def _decisions(self, head: RequestHead, body: bytes) -> Answer:  # noqa: ARG002
        limit = _parameter(head, "limit") or str(DECISIONS_LISTED)
        if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit[:9]) <= DecisionLog.KEPT:
            raise ConfigurationError("limit", limit, f"a number from 1 to {DecisionLog.KEPT}")
        services = self._services
        if services.team is None:
            return Reply(HTTPStatus.OK, DecisionList(services.decisions.latest(int(limit))))
        return _of_all(services.team, "decisions", self._own_decisions(), int(limit))

    def _own_decisions(self) -> DecisionList:
        return DecisionList(self._services.decisions.latest(DecisionLog.KEPT))

    def _explain(self, head: RequestHead, body: bytes) -> Answer:
        services = self._services
        fields = read_fields(body, services.sessions.decode)
        body = services.without_alias(fields, body)
        request = RoutingRequest(fields, services.sessions.find(head.fields, fields), now=services.clock())
        ladder = services.tokens
        question = None
        if ladder is not None and request.has_prompt and services.choosing.arm_of(request).needs_tokens:
            question = ladder.at_once(request, body)
        if ladder is None or question is None:
            return self._explained(request, body)
        return self._explained_with_tokens(request, body, ladder, question)

    async def _explained_with_tokens(
        self, request: RoutingRequest, body: bytes, ladder: TokenLadder, question: Question
    ) -> Reply:
        await ladder.climb(request, question)
        return self._explained(request, body)

    def _explained(self, request: RoutingRequest, body: bytes) -> Reply:
        services, now = self._services, self._services.clock()
        model = request.model or None
        candidates = services.endpoints.candidates(model, now)
        arm = services.choosing.arm_of(request)
        decision = arm.strategy.choose(request, candidates) if candidates else None
        choice = None if decision is None else choice_of(decision)
        if choice is not None and isinstance(arm.strategy, KvAware):
            for weighed, endpoint in zip(choice.weighed, candidates, strict=True):
                weighed.known = arm.strategy.known(request, endpoint)
        pairing = None if decision is None else self._pairing(request, decision, body, now)
        prefill = None if pairing is None else pairing.prefill
        return Reply(
            HTTPStatus.OK,
            Explanation(
                strategy=arm.strategy.name,
                arm=arm.name,
                model=request.model,
                session=services.decisions.digest(request.session),
                prompt_tokens=request.prompt_tokens,
                told_by=request.told.origin if request.told is not None else "",
                choice=choice,
                pairing="" if pairing is None else pairing.text,
                prefill=None if prefill is None else choice_of(prefill),
                passed_over=_passed_over(services.endpoints.all, candidates, model, now),
            ),
        )

    def _pairing(self, request: RoutingRequest, decision: Decision, body: bytes, now: float) -> Pairing | None:
        """Return whether another endpoint would compute the prompt, and which."""
        services = self._services
        found = pairs.split(request, decision, body, services.config.prefill_threshold)
        if not isinstance(found, dict):
            return found
        endpoints = services.endpoints.candidates(request.model or None, now, role="prefill")
        usable = [endpoint for endpoint in endpoints if endpoint.is_usable(now)]
        partners = pairs.partners(usable, decision.endpoint.weights)
        if not partners:
            return Pairing("fallback", pairs.OTHER_WEIGHTS if usable else "no_endpoint")
        strategy = services.choosing.arm_of(request).strategy
        return Pairing("paired", prefill=strategy.choose(request.for_prefill(), partners))


async def _once_all_have(team: "Team", change: Change, reply: Reply) -> Reply:
    try:
        await team.change(change)
    except TimeoutError:
        return _wrong(HTTPStatus.GATEWAY_TIMEOUT, "This worker has made the change; not all others said so in time.")
    return reply


async def _of_all(
    team: "Team", about: str, own: EndpointList | AffinityState | DecisionList, limit: int | None = None
) -> Reply:
    """Return what all workers say together; ``own`` is what this one does."""
    try:
        content = await team.ask(about, msgspec.json.encode(own))
    except TimeoutError:
        return _wrong(HTTPStatus.GATEWAY_TIMEOUT, "The other workers did not answer in time.")
    together = msgspec.json.decode(content, type=type(own))
    if isinstance(together, DecisionList):
        together.decisions = together.decisions[:limit]
    return Reply(HTTPStatus.OK, together)


def _passed_over(
    endpoints: Sequence[Endpoint], candidates: Sequence[Endpoint], model: str | None, now: float
) -> list[PassedOver]:
    found = []
    for endpoint in endpoints:
        if endpoint in candidates:
            continue
        serves = model is None or endpoint.models is None or model in endpoint.models
        if not serves:
            why = "does not serve the model"
        else:
            why = _state_of(endpoint, now) if "decode" in endpoint.roles else "only prefills"
        found.append(PassedOver(endpoint.url, why))
    return found


def _state_of(endpoint: Endpoint, now: float) -> str:
    if endpoint.is_draining:
        return "draining"
    if endpoint.is_up is False:
        return "down"
    if endpoint.ejected_for_s(now):
        return "ejected"
    if endpoint.rests_for_s(now):
        return "resting"
    if endpoint.is_on_probation:
        return "probation"
    return "serving" if endpoint.is_up else "unchecked"


def _parameter(head: RequestHead, name: str) -> str | None:
    """Return a parameter of the target's query."""
    query = head.target.partition(b"?")[2].decode("latin-1")
    return parse_qs(query).get(name, [None])[0]


def _wrong(status: HTTPStatus, message: str) -> Reply:
    return Reply(status, message=message)
