"""What the main branch of a repository on the Hugging Face Hub is: asked once for each change of a resource.

Rule: the Hub is asked on the way of no other endpoint for long: it has seconds to answer, and one that does not is left
alone for a minute.
"""

import asyncio
from collections.abc import Callable

from tierline import logs
from tierline.errors import ClusterRefused, SourceError
from tierline.fetch.addresses import DEFAULT_REVISION, HubSource
from tierline.fetch.sources import Hub
from tierline.kube.cluster import Cluster
from tierline.operator.controller.keeping import content_of
from tierline.operator.endpoint import Endpoint
from tierline.operator.resources.inference_endpoint_config import HuggingFaceModel

log = logs.get(__name__)

HUB = "https://huggingface.co"
ANSWER_SECONDS = 5.0
LEFT_ALONE_SECONDS = 60.0


class HubCommits:
    """Commits of main branches.

    Parameters
    ----------
    cluster
        Has the Secrets with tokens of gated repositories.
    hub
        URL of the Hub, or of a mirror; ``None``: its own.
    clock
        Seconds, monotonic.
    """

    def __init__(self, cluster: Cluster, hub: str | None, clock: Callable[[], float]) -> None:
        self._cluster = cluster
        self._hub = hub or HUB
        self._clock = clock
        self._left_alone_until = 0.0
        self._known: dict[str, tuple[int, str, str]] = {}
        """By uid: the generation that asked, for which repository, and what came."""

    def forget(self, uid: str) -> None:
        """Drop what is remembered of an endpoint that is gone."""
        self._known.pop(uid, None)

    async def of(self, endpoint: Endpoint) -> str | None:
        """Return the commit of the main branch; ``None`` where the Hub does not say, or nothing is to be asked."""
        model = endpoint.hub_model
        if model is None or model.commit_sha is not None:
            return None
        generation, repository, commit = self._known.get(endpoint.uid, (0, "", ""))
        if (generation, repository) == (endpoint.generation, model.model_id):
            return commit
        if self._clock() < self._left_alone_until:
            return None
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                commit = await self._ask(model, endpoint.namespace)
        except (SourceError, OSError) as error:  # a TimeoutError is one
            if isinstance(error, OSError):
                self._left_alone_until = self._clock() + LEFT_ALONE_SECONDS
            why = str(error) or f"nothing came within {ANSWER_SECONDS:.0f} s"
            log.warning("the Hub does not say which commit it is", model=model.model_id, hub=self._hub, why=why)
            return None
        self._known[endpoint.uid] = (endpoint.generation, model.model_id, commit)
        return commit

    async def _ask(self, model: HuggingFaceModel, namespace: str) -> str:
        hub = Hub(HubSource(model.model_id, DEFAULT_REVISION), self._hub, await self._token(model, namespace))
        try:
            return await hub.commit()
        finally:
            await hub.close()

    async def _token(self, model: HuggingFaceModel, namespace: str) -> str:
        reference = model.token_secret_ref
        if reference is None or not reference.name:
            return ""
        try:
            content = await content_of(self._cluster, namespace, reference.name)
        except ClusterRefused as refused:  # what may not be read is asked for without
            if refused.is_passing:
                raise
            log.warning("a token cannot be read", secret=reference.name, namespace=namespace, why=str(refused))
            return ""
        return content.get(reference.key, b"").decode(errors="replace").strip()
