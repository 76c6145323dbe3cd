"""From a request to what becomes of it: an answer of the router's own, or an exchange with an endpoint."""

import os
import re
from http import HTTPStatus
from random import getrandbits, random
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote_to_bytes

import msgspec

from tierline.router.admin.api import PREFIX, Reply
from tierline.router.dashboard.files import PAGE
from tierline.router.http.heads import BadMessage, RequestHead
from tierline.router.http.replies import JSON
from tierline.router.keys import ApiKey, Bypass
from tierline.router.prompt import RequestFields, read_fields
from tierline.router.proxy import bypass, keyed, sagemaker
from tierline.router.proxy.answering import Answering
from tierline.router.proxy.exchange import Exchange
from tierline.router.proxy.services import REQUEST_ID, X_TIERLINE_BYPASS, Services
from tierline.router.proxy.serving import Cycle
from tierline.router.renaming import with_id
from tierline.router.strategies.base import RoutingRequest
from tierline.router.tracing.requests import names_another_place
from tierline.router.workers.gathering import CONTENT_TYPE, encode_families, families_of
from tierline.tracing.context import TRACEPARENT, TRACESTATE

if TYPE_CHECKING:
    from tierline.router.proxy.client import ClientConnection
    from tierline.router.workers.team import Team

_INTEGER = re.compile(rb"-?[0-9]{1,9}")
_CHAT, _COMPLETION, _INVOCATIONS = b"/v1/chat/completions", b"/v1/completions", b"/invocations"


class _Proxied(NamedTuple):
    """A route to an endpoint, by ``POST`` with a JSON body."""

    name: str
    has_prompt: bool
    """Whether serving it leaves the prompt's KV in a cache."""


PROXIED = {
    _CHAT: _Proxied("chat", has_prompt=True),
    _COMPLETION: _Proxied("completions", has_prompt=True),
    b"/v1/responses": _Proxied("responses", has_prompt=True),
    b"/v1/messages": _Proxied("messages", has_prompt=True),
    b"/v1/embeddings": _Proxied("embeddings", has_prompt=False),
    b"/tokenize": _Proxied("tokenize", has_prompt=False),
    b"/detokenize": _Proxied("detokenize", has_prompt=False),
    _INVOCATIONS: _Proxied("invocations", has_prompt=True),
}
_LOCAL = frozenset({b"/v1/models", b"/metrics"})
_PASSED_ON = b"/v1/"


def dispatch(
    services: Services,
    client: "ClientConnection",
    head: RequestHead,
    body: bytes,
    held_bytes: int,
    key: ApiKey | None,
) -> Cycle | None:
    """Return what is to start, such as an exchange, or ``None`` when the request was answered here.

    Parameters
    ----------
    services, client, head, body
        The request and where it came from.
    held_bytes
        What the body counts for in ``services.held_bytes``; an exchange lets go of it in the end.
    key
        What the request showed; ``None`` where none is asked for.
    """
    started_at = services.clock()
    path, target = head.path, head.target
    fields: RequestFields | None
    facade = sagemaker.facade_of(head) if path.startswith(sagemaker.PREFIX) else None
    if facade is not None:
        path = _INVOCATIONS
    try:
        proxied = PROXIED.get(path)
        if proxied is not None:
            if head.method != b"POST":
                _refuse_method(services, client, head, b"POST")
                return None
            fields = read_fields(body, services.sessions.decode)
            if path == _INVOCATIONS:
                target = (services.invocation_path or _invoked(fields)) + target[len(head.path) :]
            name, has_prompt = proxied
        elif path == b"/metrics" and services.team is not None and head.method in (b"GET", b"HEAD"):
            return _answer_with_team(services, client, head, held_bytes, services.team)
        elif path == sagemaker.OPERATIONS and (operation := sagemaker.operation_of(head)) is not None:
            _answer_aws(services, client, head, operation, body)
            return None
        elif path in _LOCAL or path in services.health_paths or path.startswith(b"/v1/models/"):
            if head.method in (b"GET", b"HEAD"):
                _answer_locally(services, client, head, key)
            else:
                _refuse_method(services, client, head, b"GET")
            return None
        elif path.startswith(PREFIX):
            return _answer_operator(services, client, head, body, held_bytes)
        elif services.dashboard is not None and (path == PAGE or path.startswith(PAGE + b"/")):
            return services.dashboard.answer(client, head, held_bytes)
        elif path.startswith(_PASSED_ON) and not _has_dot_segments(path):
            fields = _fields_if_json(services, body)
            name, has_prompt = "other", False
        else:
            _refuse(services, client, head, 404, f"There is no {path.decode('latin-1')} here.", "not_found")
            return None
    except BadMessage as error:
        _refuse(services, client, head, error.status, str(error), "invalid_json")
        return None

    came = body
    without: frozenset[Bypass] = frozenset()
    try:
        if fields is not None and services.aliases:
            body = services.without_alias(fields, body)
        salt = ""
        if X_TIERLINE_BYPASS in head.fields:
            without = bypass.requested(services, key, head)
            salt = bypass.unshared_salt(fields) if "cache" in without else ""
        if key is not None:
            salt = keyed.apply(services, key, head, fields, body, started_at, salt)
        if salt:
            assert fields is not None
            fields.cache_salt = salt
    except BadMessage as error:
        _refuse(services, client, head, error.status, str(error), error.code, extra=error.extra)
        return None
    fields = fields or RequestFields()
    if fields.model is not None and not services.endpoints.may_serve(fields.model):
        message = f"The model `{fields.model}` does not exist."
        services.decisions.model_not_found(head.fields.get(REQUEST_ID, b""), name, fields.model)
        _refuse(services, client, head, 404, message, "model_not_found", "model")
        return None
    session = services.sessions.find(head.fields, fields)
    if has_prompt:
        routing = RoutingRequest(fields, session, now=started_at)
    else:
        routing = RoutingRequest(RequestFields(model=fields.model), session, now=started_at)
    if body is not came:  # what routing reads is in the first one
        services.held_bytes += len(body)
        held_bytes += len(body)
    exchange = Exchange(services, client, name, head, target, body, routing, held_bytes, started_at, facade)
    exchange.salt = salt
    exchange.wants_stream = bytes(fields.stream) == b"true"
    if "affinity" in without:
        exchange.arm = services.choosing.without_affinity(routing)
    is_trusted = services.config.trust_traceparent
    if not is_trusted:
        head.forget(TRACEPARENT, TRACESTATE)
    if services.spans is not None:
        exchange.trace = services.spans.begin(head)
    elif services.config.trace_share and TRACEPARENT not in head.fields and random() < services.config.trace_share:
        # https://www.w3.org/TR/trace-context/: version, trace, parent, flags (sampled)
        head.fields[TRACEPARENT] = f"00-{os.urandom(16).hex()}-{os.urandom(8).hex()}-01".encode()
        head.lines.append(b"traceparent: %b\r\n" % head.fields[TRACEPARENT])
    if (services.spans is not None or not is_trusted) and names_another_place(head, exchange.trace):
        head.forget(REQUEST_ID)
        exchange.request_id = b"%032x" % getrandbits(128)
    if exchange.trace is not None:
        exchange.tell_place(exchange.trace.context)
    if services.admission is not None:
        exchange.priority = _priority(services, head, fields)
        if key is not None:
            exchange.tenant = key.tenant
            exchange.priority = max(exchange.priority, key.priority)
    return exchange


def _priority(services: Services, head: RequestHead, fields: RequestFields) -> int:
    """Return the request's place among those that wait; what is no whole number is the endpoint's to refuse."""
    raw = head.fields.get(services.priority_header, b"") if services.priority_header else bytes(fields.priority)
    return int(raw) if raw and _INTEGER.fullmatch(raw) else 0


def _invoked(fields: RequestFields) -> bytes:
    """Return the path that SageMaker's ``/invocations`` means for this body."""
    if fields.messages:
        return _CHAT
    if fields.prompt:
        return _COMPLETION
    raise BadMessage(400, "the body of /invocations needs messages or a prompt")


def _fields_if_json(services: Services, body: bytes) -> RequestFields | None:
    """Return the fields of a body on a route that we do not know; ``None`` where it is no JSON object."""
    if not body:
        return None
    try:
        return read_fields(body, services.sessions.decode)
    except BadMessage:
        return None


def _has_dot_segments(path: bytes) -> bool:
    """Whether an engine might take the path for one outside ``/v1``."""
    plain = path.lower().replace(b"%2e", b".").replace(b"%2f", b"/")
    return b"/../" in plain + b"/" or b"/./" in plain + b"/"


# Answers of the router's own ------------------------------------------------------------------------------------------


def _answer_locally(services: Services, client: "ClientConnection", head: RequestHead, key: ApiKey | None) -> None:
    content_type = JSON
    if head.path == b"/metrics":  # of a router of one process
        name, status, (body, content_type) = "metrics", 200, services.metrics.exposition()
    elif head.path in services.health_paths:
        is_serving = services.endpoints.is_serving and not services.is_draining
        name, status = "health", 200 if is_serving else 503
        body = b'{"status":"ok"}' if is_serving else b'{"status":"no endpoint is healthy"}'
    elif head.path == b"/v1/models":
        name, status = "models", 200
        body = b'{"object":"list","data":[%b]}' % b",".join(_model_cards(services, key).values())
    else:
        model = unquote_to_bytes(head.path.removeprefix(b"/v1/models/")).decode("utf-8", "replace")
        card = _model_cards(services, key).get(model)
        if card is None:
            _refuse(services, client, head, 404, f"The model `{model}` does not exist.", "model_not_found", "model")
            return
        name, status, body = "models", 200, card
    services.metrics.request_answered(name, status)
    client.write_reply(
        status, body, content_type=content_type, keep_alive=head.keep_alive, without_body=head.method == b"HEAD"
    )


def _answer_aws(
    services: Services, client: "ClientConnection", head: RequestHead, operation: bytes, body: bytes
) -> None:
    is_serving = services.endpoints.is_serving and not services.is_draining
    status, content, kind = sagemaker.described(operation, bytes(body), is_serving=is_serving, since=services.since)
    services.metrics.request_answered("sagemaker", status)
    client.write_reply(status, content, content_type=kind, keep_alive=head.keep_alive)


def _answer_with_team(
    services: Services, client: "ClientConnection", head: RequestHead, held_bytes: int, team: "Team"
) -> Answering[Reply]:
    """Answer with the metrics of all workers."""

    async def ask() -> Reply:
        try:
            return Reply(
                HTTPStatus.OK, page=await team.ask("metrics", encode_families(families_of(services.metrics.families())))
            )
        except TimeoutError:
            return Reply(HTTPStatus.GATEWAY_TIMEOUT, message="The other workers did not answer in time.")

    def write(reply: Reply) -> None:
        if reply.status != HTTPStatus.OK:
            _refuse(services, client, head, reply.status, reply.message, "gateway_timeout")
            return
        services.metrics.request_answered("metrics", 200)
        without_body = head.method == b"HEAD"
        client.write_reply(
            200, reply.page, content_type=CONTENT_TYPE, keep_alive=head.keep_alive, without_body=without_body
        )

    return Answering(services, client, ask(), write, keep_alive=head.keep_alive, held_bytes=held_bytes)


def _model_cards(services: Services, key: ApiKey | None) -> dict[str, bytes]:
    """Return what is known of the models that the holder of ``key`` may ask for."""
    cards = services.endpoints.model_cards()
    for alias, model in services.aliases.items():
        if model in cards:
            cards[alias] = with_id(cards[model], alias)
    return (
        cards
        if key is None
        else {name: card for name, card in cards.items() if key.allows(services.aliases.get(name, name))}
    )


def _answer_operator(
    services: Services, client: "ClientConnection", head: RequestHead, body: bytes, held_bytes: int
) -> Answering[Reply] | None:
    def write(answer: Reply) -> None:
        if answer.document is not None:
            services.metrics.request_answered("admin", answer.status)
            client.write_reply(answer.status, msgspec.json.encode(answer.document), keep_alive=head.keep_alive)
            return
        extra = b"allow: %b\r\n" % answer.allowed if answer.allowed else b""
        if answer.status == HTTPStatus.UNAUTHORIZED:
            extra = b"www-authenticate: Bearer\r\n"
        _refuse(services, client, head, answer.status, answer.message, answer.status.name.lower(), extra=extra)

    assert services.admin is not None
    answer = services.admin.answer(head, bytes(body))
    if isinstance(answer, Reply):
        write(answer)
        return None
    return Answering(services, client, answer, write, keep_alive=head.keep_alive, held_bytes=held_bytes)


def _refuse_method(services: Services, client: "ClientConnection", head: RequestHead, allowed: bytes) -> None:
    message = f"{head.path.decode('latin-1')} takes {allowed.decode()}, not {head.method.decode('latin-1')}."
    _refuse(services, client, head, 405, message, "method_not_allowed", extra=b"allow: %b\r\n" % allowed)


def _refuse(
    services: Services,
    client: "ClientConnection",
    head: RequestHead,
    status: int,
    message: str,
    code: str,
    param: str | None = None,
    *,
    extra: bytes = b"",
) -> None:
    services.metrics.request_refused(status)
    client.write_error(
        status,
        message,
        code,
        param=param,
        keep_alive=head.keep_alive,
        extra=(extra,),
        without_body=head.method == b"HEAD",
    )
