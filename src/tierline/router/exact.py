"""What ``kvaware`` needs around it: tokens of prompts, KV events of endpoints, metrics of both; from start to end."""

import time
from dataclasses import dataclass
from pathlib import Path

from tierline.router.events.following import EventFollower
from tierline.router.events.subscriber import EventSubscriptions
from tierline.router.proxy.services import Services
from tierline.router.tokenizer import LocalTokenizer
from tierline.router.tokens import TokenLadder


@dataclass(frozen=True)
class ExactRouting:
    """The parts that live as long as the router.

    Parameters
    ----------
    ladder
        Gives requests their tokens.
    follower
        Told of each endpoint that joins or leaves.
    """

    ladder: TokenLadder
    follower: EventFollower

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
        subscriptions = EventSubscriptions(strategy.blocks, time.time)
        folders = dict(entry.split("=", 1) for entry in config.tokenizers)
        tokenizers = {model: LocalTokenizer(Path(folder)) for model, folder in folders.items()}
        ladder = TokenLadder(services.endpoints, tokenizers, tls=services.endpoint_tls, keys=services.endpoint_keys)
        return cls(ladder, EventFollower(strategy, ladder, subscriptions))

    async def close(self) -> None:
        """End everything."""
        await self.ladder.close()
        await self.follower.close()
