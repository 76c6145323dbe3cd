"""What a look at a resource brings out: for each finding where it is, how bad, and what to do."""

from dataclasses import dataclass
from enum import StrEnum

from tierline.operator.crds import Resource


class Severity(StrEnum):
    """How bad a finding is."""

    ERROR = "error"
    """The resource cannot be acted upon."""
    WARNING = "warning"
    """It can, and perhaps not as is meant."""
    UNSUPPORTED = "unsupported"
    """The field is kept, and nothing follows from it here: it needs AWS, or is of a later HyperPod operator.

    What of AWS may be in the cluster, an Application Load Balancer, is not known when a resource is looked at.
    """


@dataclass(frozen=True)
class Finding:
    """One thing that is to be said of a resource.

    Parameters
    ----------
    severity
        How bad it is.
    path
        The field, such as ``spec.worker.environmentVariables[0].value``.
    message
        What is wrong and what to do, in one line.
    """

    severity: Severity
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


def error(path: str, message: str) -> Finding:
    """Return a finding for which the resource cannot be acted upon."""
    return Finding(Severity.ERROR, path, message)


def warning(path: str, message: str) -> Finding:
    """Return a finding that the user should know of."""
    return Finding(Severity.WARNING, path, message)


def unsupported(path: str, message: str) -> Finding:
    """Return that a field is kept and nothing follows from it."""
    return Finding(Severity.UNSUPPORTED, path, message)


@dataclass(frozen=True)
class Verdict:
    """What is to be said of a resource.

    Parameters
    ----------
    resource
        The resource as a model; ``None`` where its form alone is wrong.
    findings
        In the order of the rules.
    """

    resource: Resource | None
    findings: tuple[Finding, ...] = ()

    @property
    def errors(self) -> tuple[Finding, ...]:
        """For these the resource cannot be acted upon."""
        return self._of(Severity.ERROR)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The user should know of these."""
        return self._of(Severity.WARNING)

    @property
    def unsupported(self) -> tuple[Finding, ...]:
        """These fields are kept, and nothing follows from them."""
        return self._of(Severity.UNSUPPORTED)

    def _of(self, severity: Severity) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity is severity)
