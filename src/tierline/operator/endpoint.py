"""What an endpoint is to be, whichever resource asks for it: the one input of every manifest beside the cluster."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tierline.operator.resources.inference_endpoint_config import HuggingFaceModel, InferenceEndpointConfigSpec
from tierline.operator.settled import Settled

ANNOTATION_PREFIX = "tierline.ai/"
"""Of the annotations that say what the resources have no field for; ``docs/operator.md`` lists them."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An endpoint to be made.

    Parameters
    ----------
    kind
        Of the resource that asks for it: ``InferenceEndpointConfig`` or ``JumpStartModel``.
    name, namespace, uid, generation
        Of that resource.
    spec
        Its own; of a ``JumpStartModel``, what the catalogue makes of it.
    annotations
        Its own; those under :data:`ANNOTATION_PREFIX` mean something here.
    settled
        What was decided for it before.
    """

    kind: str
    name: str
    namespace: str
    uid: str
    spec: InferenceEndpointConfigSpec
    generation: int = 1
    annotations: Mapping[str, str] = field(default_factory=dict)
    settled: Settled = field(default_factory=Settled)

    def annotation(self, key: str) -> str | None:
        """Return what the user says under ``tierline.ai/KEY``."""
        return self.annotations.get(ANNOTATION_PREFIX + key)

    @property
    def model_region(self) -> str | None:
        """Region of the bucket that the model is in; ``None`` where it is in none."""
        bucket = self.spec.model_source_config.s3_storage
        return bucket.region if bucket is not None else None

    @property
    def hub_model(self) -> HuggingFaceModel | None:
        """The repository that the model comes from, where that is one of the Hugging Face Hub."""
        source = self.spec.model_source_config
        return source.hugging_face_model if source.model_source_type == "huggingface" else None

    @property
    def commit(self) -> str | None:
        """The commit of that which all pods have; ``None`` where each has what the main branch is when it starts."""
        model = self.hub_model
        return (model.commit_sha or self.settled.pods.commit or None) if model is not None else None
