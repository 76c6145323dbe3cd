"""Other names of models, and whether anybody serves what they stand for."""

from collections.abc import Mapping

from tierline import logs
from tierline.router.admin.documents import AliasState
from tierline.router.endpoints import Endpoints

log = logs.get(__name__)


class AliasWatch:
    """Says in the log which aliases stand for a model that nobody serves: requests that use them are answered 404.

    Parameters
    ----------
    aliases
        The model that each alias stands for.
    endpoints
        Those whose models are not known yet are taken to serve any.
    """

    def __init__(self, aliases: Mapping[str, str], endpoints: Endpoints) -> None:
        self._aliases = aliases
        self._endpoints = endpoints
        self._told: set[str] = set()

    def sweep(self) -> None:
        """Look again; each alias is warned of once, until its model is served."""
        for state in self.states():
            if state.is_served:
                self._told.discard(state.alias)
            elif state.alias not in self._told:
                self._told.add(state.alias)
                log.warning("nobody serves the model that an alias stands for", alias=state.alias, model=state.model)

    def states(self) -> list[AliasState]:
        """Return how each alias stands; without endpoints nobody can tell."""
        return [
            AliasState(alias=alias, model=model, is_served=self._endpoints.may_serve(model))
            for alias, model in self._aliases.items()
        ]
