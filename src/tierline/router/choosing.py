"""Which strategy chooses for a request: its model's, one on trial beside it, or one that knows nothing of caches.

A request belongs to one *arm*, a strategy with figures of its own, until it is over; only where affinity is turned off
before it is sent, it changes to the arm for that. An arm's strategy is told what becomes of its choices. Two things are
told to more than one:

- What becomes of an endpoint: all.
- Where a prompt went: both arms of a trial. Engines' caches are full of the prompts of both, and a strategy that knew
  of its own only would take a cache for the larger the smaller its share is. Turns, and homes of sessions, are each
  arm's own.
"""

from collections.abc import Sequence

import xxhash

from tierline import logs
from tierline.router.admin.documents import ArmState
from tierline.router.config import RouterConfig
from tierline.router.endpoints import Endpoint, Endpoints
from tierline.router.metrics import ArmCounts
from tierline.router.modelrules import ModelRule
from tierline.router.strategies import build_strategy
from tierline.router.strategies.base import Decision, RoutingRequest, Strategy
from tierline.router.strategies.kvaware import KvAware, measured_of, weights_of
from tierline.router.strategies.leastload import LeastLoad
from tierline.router.strategies.prefixaware import PrefixAware
from tierline.router.strategies.session import SessionAffinity

log = logs.get(__name__)

MAIN, TRIAL, BYPASS, OFF = "main", "trial", "bypass", "off"
"""Names of arms: the strategy that is configured; the one on trial; requests that asked for none; all, while it is
turned off."""
_TRIAL_SEED = 0x7469_6572
"""Apart from those by which sessions and prefixes find their endpoints: an arm is no set of endpoints."""


class Arm:
    """A strategy, for some of the requests.

    Parameters
    ----------
    strategy
        It chooses for them.
    model
        Whose requests these are; empty: those of all models without a rule of their own.
    name
        :data:`MAIN`, :data:`TRIAL`, :data:`BYPASS` or :data:`OFF`.
    observer
        The other arm's strategy, where it has to be told too.
    is_compared
        Whether the router has arms to compare this one with: then each answer is asked what its prompt was, whatever
        the strategy looks at.

    Attributes
    ----------
    strategy
        The one to ask and to tell: the observer learns from it too.
    own
        The same without the observer: what the arm itself remembers.
    counts
        What is counted of its requests.
    needs_tokens
        Whether the strategy makes use of a prompt's tokens.
    fields
        Header fields of its answers.
    substitute
        Chooses while affinity is turned off; ``None`` where there is none to turn off.
    """

    __slots__ = ("counts", "fields", "is_compared", "model", "name", "needs_tokens", "own", "strategy", "substitute")

    def __init__(
        self,
        strategy: Strategy,
        model: str = "",
        name: str = MAIN,
        *,
        observer: PrefixAware | None = None,
        is_compared: bool = False,
    ) -> None:
        self.own = strategy
        self.strategy = strategy if observer is None else _Observed(strategy, observer)
        self.model = model
        self.name = name
        self.is_compared = is_compared
        self.counts = ArmCounts()
        self.needs_tokens = isinstance(strategy, KvAware)
        self.fields = f"x-tierline-strategy: {strategy.name}\r\nx-tierline-arm: {name}\r\n".encode()
        self.substitute: Arm | None = None


class Rule:
    """How endpoints are chosen for the requests of one model.

    Parameters
    ----------
    strategy
        The one that is configured.
    model
        The model's name; empty for all that have no rule of their own.
    trial, share
        Another one, and which part of the requests it chooses for.
    is_compared
        As for :class:`Arm`.
    """

    def __init__(
        self,
        strategy: Strategy,
        model: str = "",
        *,
        trial: Strategy | None = None,
        share: float = 0.0,
        is_compared: bool = False,
    ) -> None:
        def arm(strategy: Strategy, name: str, other: Strategy | None = None) -> Arm:
            observer = other if isinstance(other, PrefixAware) else None
            return Arm(strategy, model, name, observer=observer, is_compared=is_compared)

        self.model = model
        self.share = share
        self.main = arm(strategy, MAIN, trial)
        self.trial = arm(trial, TRIAL, strategy) if trial is not None else None
        self.bypass, self.off = arm(LeastLoad(), BYPASS), arm(LeastLoad(), OFF)
        self.chosen = (self.main,) if self.trial is None else (self.main, self.trial)
        for one in self.chosen:
            one.substitute = self.off if isinstance(one.own, PrefixAware | SessionAffinity) else None
        self.arms = (*self.chosen, self.bypass, self.off)

    @property
    def strategies(self) -> tuple[Strategy, ...]:
        """What is configured: one strategy, or two."""
        return tuple(arm.own for arm in self.chosen)

    def arm_of(self, request: RoutingRequest, request_id: bytes) -> Arm:
        """Return the arm of a request: the same for all of a session, or for all turns of a conversation."""
        if self.trial is None:
            return self.main
        digest = xxhash.xxh3_64_intdigest(request.session or request.opening or request_id, _TRIAL_SEED)
        return self.trial if digest < self.share * 2**64 else self.main


class Choosing:
    """All strategies of a router, and whether those that know of caches and sessions may choose.

    Parameters
    ----------
    default
        For the requests of models without a rule.
    rules
        Of models. A model's adapters keep to its rule where they have none.
    endpoints
        They know which model an adapter belongs to.
    """

    def __init__(self, default: Rule, rules: Sequence[Rule] = (), endpoints: Endpoints | None = None) -> None:
        self.default = default
        self._rules = {rule.model: rule for rule in rules}
        self._endpoints = endpoints or Endpoints()
        self._turned_off: frozenset[str] = frozenset()
        self.rules = (default, *rules)
        self.arms = tuple(arm for rule in self.rules for arm in rule.arms)
        self.strategies = tuple(strategy for rule in self.rules for strategy in rule.strategies)

    @classmethod
    def of(cls, config: RouterConfig, endpoints: Endpoints) -> "Choosing":
        """Return what is configured."""
        build = _Builder(config)
        rules = [build.rule(rule, model) for model, rule in config.models.items()]
        choosing = cls(build.rule(config), rules, endpoints)
        for model in (
            *([] if config.affinity else [""]),
            *(m for m, rule in config.models.items() if not rule.affinity),
        ):
            choosing.turn_off(model)
        return choosing

    # Requests ---------------------------------------------------------------------------------------------------------

    def arm_of(self, request: RoutingRequest, request_id: bytes = b"") -> Arm:
        """Return the arm that a request belongs to now."""
        rule = self._rule_of(request.model) if self._rules else self.default
        return self.in_force(rule.arm_of(request, request_id), request.model)

    def in_force(self, arm: Arm, model: str) -> Arm:
        """Return the arm of a request that belonged to ``arm``: another where affinity was turned off."""
        if self._turned_off and arm.substitute is not None and self.is_turned_off(model):
            return arm.substitute
        return arm

    def without_affinity(self, request: RoutingRequest) -> Arm:
        """Return the arm of a request that asks for no affinity."""
        return self._rule_of(request.model).bypass

    def _rule_of(self, model: str) -> Rule:
        rule = self._rules.get(model)
        if rule is None:
            rule = self._rules.get(self._endpoints.parent(model) or "")
        return rule or self.default

    # Endpoints --------------------------------------------------------------------------------------------------------

    def forget(self, endpoint: Endpoint) -> None:
        """The endpoint has lost what it held, or does not serve."""
        for arm in self.arms:
            arm.strategy.forget(endpoint)

    # Turning affinity off ---------------------------------------------------------------------------------------------

    def is_turned_off(self, model: str) -> bool:
        """Return whether no strategy that knows of caches or sessions may choose for a model; empty: for any."""
        off = self._turned_off
        return bool(off) and ("" in off or model in off or (self._endpoints.parent(model) or "") in off)

    @property
    def turned_off(self) -> list[str]:
        """What affinity is turned off for: models, and an empty name for all."""
        return sorted(self._turned_off)

    def turn_off(self, model: str = "") -> None:
        """Choose by load alone, from the next request that is sent on; empty: for all models.

        What was known of caches is kept, learns nothing, and is forgotten when affinity is turned on again.
        """
        if model in self._turned_off:
            return
        self._turned_off |= {model}
        log.warning("affinity is turned off: endpoints are chosen by load alone", model=model or "all")

    def turn_on(self, model: str = "") -> None:
        """End what :meth:`turn_off` did for the same name. Strategies begin anew: what they know is of another time."""
        if model not in self._turned_off:
            return
        self._turned_off -= {model}
        for rule in [self._rule_of(model)] if model else self.rules:
            for strategy in rule.strategies:
                for endpoint in self._endpoints.all:
                    strategy.forget(endpoint)
        log.info("affinity is turned on again", model=model or "all")

    def states(self) -> list[ArmState]:
        """Return all arms that have requests now, or had some."""
        return [
            ArmState(model=rule.model, arm=arm.name, strategy=arm.strategy.name, share=share, requests=requests)
            for rule in self.rules
            for arm, share in self._shares(rule).items()
            if (requests := arm.counts.requests.total()) or share
        ]

    def _shares(self, rule: Rule) -> dict[Arm, float]:
        shares = dict.fromkeys(rule.arms, 0.0)
        for arm, share in ((rule.main, 1.0 - rule.share), (rule.trial, rule.share)):
            if arm is not None:
                shares[self.in_force(arm, rule.model)] += share
        return shares

    # What strategies have ---------------------------------------------------------------------------------------------

    @property
    def kvaware(self) -> KvAware | None:
        """The strategy that wants to be told of KV events; of several, which share what they are told, one."""
        return next((strategy for strategy in self.strategies if isinstance(strategy, KvAware)), None)

    @property
    def index_bytes(self) -> int:
        """Memory of the prefix indexes."""
        return sum(strategy.index.size_bytes for strategy in self.strategies if isinstance(strategy, PrefixAware))

    @property
    def index_placements(self) -> int:
        """Pairs of a block and an endpoint in the prefix indexes."""
        return sum(len(strategy.index) for strategy in self.strategies if isinstance(strategy, PrefixAware))


class _Builder:
    """Makes the rules of one router; its ``kvaware`` strategies read one index."""

    def __init__(self, config: RouterConfig) -> None:
        self._config = config
        self._first: KvAware | None = None

    def rule(self, configured: RouterConfig | ModelRule, model: str = "") -> Rule:
        """Return the rule of a model."""
        index_bytes = configured.index_bytes or self._config.index_bytes
        trial = configured.ab_strategy
        return Rule(
            self._strategy(configured.strategy, index_bytes),
            model,
            trial=None if trial is None else self._strategy(trial, index_bytes),
            share=configured.ab_share,
            is_compared=bool(self._config.models) or self._config.ab_strategy is not None,
        )

    def _strategy(self, name: str, index_bytes: int) -> Strategy:
        config = self._config
        strategy = build_strategy(name, max(1, len(config.endpoints)), index_bytes, config.kv_index_bytes)
        if isinstance(strategy, KvAware):
            strategy.weights, strategy.measured = weights_of(config.tier_weights), measured_of(config.tier_weights)
            if self._first is not None:
                strategy.share_index_of(self._first)
            self._first = self._first or strategy
        return strategy


class _Observed:
    """A strategy whose choices another one is told of, as if it had made them.

    A decision says what the one that made it knew of the prompt; the observer's own view of it goes along as
    :attr:`~tierline.router.strategies.base.Decision.observed`, for what is withdrawn is what was placed.
    """

    def __init__(self, strategy: Strategy, observer: PrefixAware) -> None:
        self.name = strategy.name
        self._strategy = strategy
        self._observer = observer

    def choose(self, request: RoutingRequest, endpoints: Sequence[Endpoint]) -> Decision:
        """See :class:`~tierline.router.strategies.base.Strategy`."""
        decision = self._strategy.choose(request, endpoints)
        return decision._replace(observed=self._observer.view(request, decision.endpoint, endpoints))

    def placed(self, request: RoutingRequest, decision: Decision) -> None:
        """See :class:`~tierline.router.strategies.base.Strategy`."""
        self._strategy.placed(request, decision)
        if decision.observed is not None:
            self._observer.placed(request, decision.observed)

    def withdrawn(self, request: RoutingRequest, decision: Decision) -> None:
        """See :class:`~tierline.router.strategies.base.Strategy`."""
        self._strategy.withdrawn(request, decision)
        if decision.observed is not None:
            self._observer.withdrawn(request, decision.observed)

    def forget(self, endpoint: Endpoint) -> None:
        """See :class:`~tierline.router.strategies.base.Strategy`."""
        self._strategy.forget(endpoint)
