"""The catalogue of metrics: what each program exports, with its type, unit, labels and meaning."""

from tierline.metrics.catalogue import CATALOGUE, PROGRAMS, definition_of
from tierline.metrics.definitions import HYPERPOD_LABELS, VLLM_LABELS, Definition, Kind

__all__ = ["CATALOGUE", "HYPERPOD_LABELS", "PROGRAMS", "VLLM_LABELS", "Definition", "Kind", "definition_of"]
