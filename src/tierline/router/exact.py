"""What ``kvaware`` needs around it: tokens of prompts, KV events of endpoints or a controller that has them, metrics;
from start to end.
"""

import os
import socket
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tierline.router.config import RouterConfig
from tierline.router.events.addresses import parse_controller
from tierline.router.events.asking import AskingLadder, RemoteFollower
from tierline.router.events.following import EventFollower
from tierline.router.events.following_stores import StoreFollower
from tierline.router.events.remote import RemoteIndex, controller_tls, read_token
from tierline.router.events.subscriber import EventSubscriptions
from tierline.router.proxy.services import Services
from tierline.router.strategies.kvaware import weights_of
from tierline.router.tokenizer import LocalTokenizer
from tierline.router.tokens import TokenLadder


@dataclass(frozen=True)
class ExactRouting:
    """The parts that live as long as the router.

    Parameters
    ----------
    ladder
        Gives requests their tokens.
    follower, stores
        Told of each endpoint that joins or leaves: for its engine, and for the store of its node.
    """

    ladder: TokenLadder
    follower: EventFollower | RemoteFollower
    stores: StoreFollower

    @classmethod
    def of(cls, services: Services) -> "ExactRouting | None":
        """Return the parts that a strategy of ``services`` needs; ``None`` where it needs none.

        Raises
        ------
        UsageError
            When a package is missing, or a tokenizer cannot be read.
        """
        config, strategy = services.config, services.choosing.kvaware
        if strategy is None:
            return None
        folders = dict(entry.split("=", 1) for entry in config.tokenizers)
        tokenizers = {model: LocalTokenizer(Path(folder)) for model, folder in folders.items()}
        tls, keys = services.endpoint_tls, services.endpoint_keys
        stores = StoreFollower(strategy, time.time)
        if config.controller is not None:
            remote = _remote_index(config)
            asking = AskingLadder(services.endpoints, tokenizers, remote, tls=tls, keys=keys)
            return cls(asking, RemoteFollower(strategy, asking, remote), stores)
        subscriptions = EventSubscriptions(strategy.blocks, time.time)
        ladder = TokenLadder(services.endpoints, tokenizers, tls=tls, keys=keys)
        is_for_all = services.choosing.default.main.needs_tokens
        return cls(ladder, EventFollower(strategy, ladder, subscriptions, is_for_all=is_for_all), stores)

    async def close(self) -> None:
        """End everything."""
        await self.ladder.close()
        await self.follower.close()
        await self.stores.close()


def _remote_index(config: RouterConfig) -> RemoteIndex:
    assert config.controller is not None
    file, authorities = config.controller_token_file, config.controller_ca
    if file is not None:
        read_token(file)  # what cannot be read is said now
    return RemoteIndex(
        parse_controller(config.controller),
        f"router {socket.gethostname()} {os.getpid()}",
        token=str if file is None else partial(read_token, file),
        tls=None if authorities is None else controller_tls(authorities),
        budget_s=config.controller_budget_s,
        weights=weights_of(config.tier_weights),
    )
