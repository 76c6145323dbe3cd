"""Which parts (MIG) the GPUs of a type of machine can be cut into; by NVIDIA's guide, "Supported MIG Profiles"."""

from tierline.operator.validation.spelling import hint

_OF_40_GB = ("1g.5gb", "1g.5gb+me", "1g.10gb", "2g.10gb", "3g.20gb", "4g.20gb", "7g.40gb")
_OF_80_GB = ("1g.10gb", "1g.10gb+me", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb")
_OF_141_GB = ("1g.18gb", "1g.18gb+me", "1g.35gb", "2g.35gb", "3g.71gb", "4g.71gb", "7g.141gb")
_OF_180_GB = ("1g.23gb", "1g.23gb+me", "1g.45gb", "2g.45gb", "3g.90gb", "4g.90gb", "7g.180gb")
_BY_FAMILY = {
    "ml.p4d": _OF_40_GB,
    "ml.p4de": _OF_80_GB,
    "ml.p5": _OF_80_GB,
    "ml.p5e": _OF_141_GB,
    "ml.p5en": _OF_141_GB,
    "ml.p6-b200": _OF_180_GB,
}
_WITHOUT = ("ml.g4dn", "ml.g5", "ml.g6", "ml.g6e", "ml.gr6", "ml.c", "ml.m", "ml.r", "ml.t", "ml.trn", "ml.inf")
"""Beginnings of types whose GPUs cannot be cut, or that have none."""


def problem_of(partition: str, instance_type: str) -> str | None:
    """Return why there is no such part on such a machine; ``None`` where there is, or nobody knows."""
    family = instance_type.rpartition(".")[0]
    profiles = _BY_FAMILY.get(family)
    if profiles is None:
        if family.startswith(_WITHOUT):
            return f"got {partition}, and GPUs of {instance_type} have no parts; ml.p4d, ml.p5 and newer ones have"
        return None
    names = [f"mig-{profile}" for profile in profiles]
    if partition in names:
        return None
    return f"got {partition}; {instance_type} has {', '.join(names)}{hint(partition, names)}"
