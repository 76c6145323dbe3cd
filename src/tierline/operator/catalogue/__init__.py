"""The models that a ``JumpStartModel`` may name: entries, the files that hold them, and what an endpoint of one is."""

from tierline.operator.catalogue.entries import Catalogue, Entry
from tierline.operator.catalogue.files import CatalogueFiles, read
from tierline.operator.catalogue.making import spec_of

__all__ = ["Catalogue", "CatalogueFiles", "Entry", "read", "spec_of"]
