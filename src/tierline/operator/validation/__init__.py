"""What is wrong with a resource, and where: for the webhook, ``tierline operator validate`` and before reconciling."""

from tierline.operator.validation.findings import Finding, Severity, Verdict
from tierline.operator.validation.validating import is_ours, validate

__all__ = ["Finding", "Severity", "Verdict", "is_ours", "validate"]
