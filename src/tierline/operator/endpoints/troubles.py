"""Why an endpoint does not come: what pods, events and logs say, in a sentence, with what to do. Pure.

A table says what each sign means; whoever meets a new trouble adds a line, and a test that shows it.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tierline.operator.endpoints.phases import MEANINGS, USUAL_SECONDS, Phase
from tierline.operator.endpoints.pods import ContainerStatus, Event, Pod, Terminated

_LONGEST_SAID = 300


@dataclass(frozen=True)
class Trouble:
    """Something that keeps an endpoint from serving.

    Parameters
    ----------
    reason
        In CamelCase.
    what
        What is the matter.
    remedy
        What to do; empty where waiting is all.
    said
        The words of the cluster that this was read from.
    is_passing
        It is usual, and ends by itself.
    """

    reason: str
    what: str
    remedy: str = ""
    said: str = ""
    is_passing: bool = False


@dataclass(frozen=True)
class _Sign:
    pattern: re.Pattern[str]
    reason: str
    what: str
    remedy: str
    is_passing: bool = False


def _sign(pattern: str, reason: str, what: str, remedy: str = "", *, is_passing: bool = False) -> _Sign:
    return _Sign(re.compile(pattern, re.IGNORECASE), reason, what, remedy, is_passing)


_SCHEDULING = (
    _sign(
        r"had (untolerated )?taints?|didn't tolerate",
        "NodeTainted",
        "nodes are kept for others by a taint",
        "remove the taint, or let the endpoint tolerate it",
    ),
    _sign(
        r"Insufficient (?P<what>[\w./-]+)",
        "NoRoom",
        "no node has enough {what} left",
        "add nodes, ask for less in spec.worker.resources, name more spec.instanceTypes, or scale something down",
    ),
    _sign(
        r"didn't match (Pod's )?node (affinity|selector)",
        "NoSuchNode",
        "no node is of the instance types, or has the labels, that are asked for",
        "see `tierline operator preflight` for what nodes say of themselves; change spec.instanceTypes or nodeAffinity",
    ),
    _sign(
        r"persistentvolumeclaim \"?(?P<what>[^\"\s]+)\"? (is )?not found",
        "VolumeMissing",
        "there is no PersistentVolumeClaim {what}",
        "create it, or name another in spec.kubernetes.volumes",
    ),
    _sign(
        r"unbound immediate PersistentVolumeClaims",
        "VolumeUnbound",
        "a PersistentVolumeClaim waits for its volume",
        "look at `kubectl describe pvc`: a StorageClass is missing, or its driver is",
    ),
)
_S3 = (
    _sign(
        r"NoSuchBucket|bucket .{0,80}does not exist",
        "BucketMissing",
        "there is no such bucket at the S3 endpoint that was asked",
        "look at bucketName and region of spec.modelSourceConfig.s3Storage, and at the operator's s3_endpoint",
    ),
    _sign(
        r"NoSuchKey|no (objects|files|such object)|s3://\S+ is not there",
        "ModelMissing",
        "nothing is stored under the model's place",
        "look at spec.modelSourceConfig.modelLocation; `tierline endpoint push-model` brings a model there",
    ),
    _sign(
        r"InvalidAccessKeyId|SignatureDoesNotMatch",
        "S3CredentialsWrong",
        "S3 does not know the access key, or its secret is another one",
        "renew the Secret that holds them",
    ),
    _sign(
        r"ExpiredToken|token .{0,20}expired", "S3CredentialsExpired", "the S3 credentials have expired", "renew them"
    ),
    _sign(
        r"(unable to locate|no|missing|failed to load|could not find) .{0,20}credentials|NoCredentialProviders",
        "S3CredentialsMissing",
        "there are no credentials for S3",
        "give the service account a role, or name a Secret with them",
    ),
    _sign(
        r"AccessDenied|Access (is )?denied|\b403\b|Forbidden",
        "S3RightsMissing",
        "S3 denies access to the model",
        "who mounts or downloads it needs s3:ListBucket on the bucket and s3:GetObject on what is under the prefix: "
        "the role of the S3 CSI driver's service account, of the endpoint's, or the keys in the Secret",
    ),
)
_MOUNTING = (
    _sign(
        r"driver name (?P<what>\S+) not found in the list of registered CSI drivers",
        "DriverMissing",
        "the CSI driver {what} does not run on that node",
        "install the driver, or see whether its DaemonSet has a pod there",
    ),
    _sign(
        r"hostPath type check failed: (?P<what>\S+)",
        "NodeStoreAway",
        "{what} is not there: no node store runs on that node, or it has not made its segment yet",
        "see whether the node store's DaemonSet has a ready pod on the node",
    ),
    _sign(
        r"(?P<what>(secret|configmap) \"[^\"]+\") not found",
        "ReferenceMissing",
        "there is no {what}",
        "create it in the endpoint's namespace",
    ),
    *_S3,
    _sign(
        r".",
        "MountSlow",
        "a volume is not mounted yet",
        "look at the CSI driver's pods: `kubectl get pods -n kube-system`, and of S3 `kubectl logs -n mount-s3 POD`",
    ),
)
_IMAGE = (
    _sign(
        r"no match for platform|exec format error",
        "ImageOtherPlatform",
        "the image is not built for that node's processors",
        "name an image for them, or an instance type of another architecture",
    ),
    _sign(
        r"toomanyrequests|rate limit",
        "ImageRateLimited",
        "the registry limits pulls",
        "log in there with an imagePullSecret, or mirror the image",
    ),
    _sign(
        r"unauthorized|denied|no basic auth|authentication required",
        "ImageDenied",
        "the registry does not hand out the image, or has none of that name",
        "look at its name; give the service account an imagePullSecret, or the node's role the right to pull",
    ),
    _sign(
        r"not found|manifest unknown|InvalidImageName|couldn't parse image",
        "ImageMissing",
        "there is no such image",
        "look at the image's name and tag",
    ),
    _sign(r".", "ImageNotPulled", "the image cannot be pulled", "look at what the registry says"),
)
_LOGS = (
    _sign(
        r"gated (repo|model)|Access to model .{0,120} is restricted|401 Client Error|must be authenticated",
        "ModelGated",
        "Hugging Face hands the model out to those who have accepted its terms",
        "accept them with the account whose token is in huggingFaceModel.tokenSecretRef",
    ),
    _sign(
        r"is not there at \S+, in revision|RepositoryNotFound|RevisionNotFound",
        "ModelMissing",
        "the hub has no such model, or not in that revision",
        "look at modelId and commitSHA of spec.modelSourceConfig.huggingFaceModel",
    ),
    *_S3,
    _sign(
        r"No space left on device",
        "DiskFull",
        "the disk or volume that takes the model is full",
        "give it more room, or take the model from a volume",
    ),
    _sign(
        r"NVIDIA driver on your system is too old|CUDA driver version is insufficient|forward compatibility was attem",
        "DriverTooOld",
        "the node's NVIDIA driver is older than the image needs",
        "take nodes with a newer driver, or an image for an older CUDA",
    ),
    _sign(
        r"no NVIDIA GPU|Found no NVIDIA driver|No CUDA GPUs are available|Failed to infer device type",
        "NoGpu",
        "the engine sees no GPU",
        "ask for nvidia.com/gpu in spec.worker.resources; see whether the device plugin runs",
    ),
    _sign(
        r"is larger than the available KV cache memory|larger than the maximum number of tokens that can be stored",
        "ContextTooLong",
        "the longest context does not fit in what the GPU has left for the KV cache",
        "set a smaller --max-model-len, or a higher --gpu-memory-utilization or --tensor-parallel-size",
    ),
    _sign(
        r"CUDA out of memory|OutOfMemoryError|No available memory for the cache blocks|Free memory on device",
        "GpuMemoryFull",
        "the model does not fit in the GPU's memory",
        "take more or larger GPUs (--tensor-parallel-size), or another --gpu-memory-utilization",
    ),
    _sign(
        r"unrecognized arguments|error: argument|the following arguments are required",
        "ArgumentWrong",
        "the engine does not take its arguments",
        "look at spec.worker.args",
    ),
)
_CREATING = ("ContainerCreating", "PodInitializing", "")
_CRASHING = ("CrashLoopBackOff", "RunContainerError", "CreateContainerError", "Error")
_PULLING = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError")
_KILLED = 128 + 9


def crashed_containers(pod: Pod) -> list[ContainerStatus]:
    """Return the containers whose last words say more than their status does."""
    return [each for each in _all(pod) if _end(each) is not None and not each.ready]


def troubles(pod: Pod, phase: Phase | None, events: Iterable[Event], logs: Mapping[str, str]) -> list[Trouble]:
    """Say what is the matter with a pod.

    Parameters
    ----------
    phase
        Where it stands.
    events
        Of the pod, the latest last.
    logs
        The last lines of :func:`crashed_containers`, by container.
    """
    if phase is None or phase.is_over:
        return []
    told = list(events)
    found = [*_of_scheduling(pod, told), *_of_containers(pod, told, logs), *_of_mounts(pod, told)]
    if not found and phase.name == "load":
        found = _of_probes(told)
    if not found and phase.name == "join":
        found = _of_joining(phase)
    if not found and phase.is_slow:
        usual = USUAL_SECONDS[phase.name] / 60
        found = [
            Trouble(
                f"{phase.name.capitalize()}Slow",
                f"it takes longer than the usual {usual:g} min until {MEANINGS[phase.name]}",
                _PATIENCE.get(phase.name, ""),
                is_passing=True,
            )
        ]
    return list(dict.fromkeys(found))


_PATIENCE = {
    "download": "large models take minutes; prefetchEnabled or a volume spares every pod its own download",
    "start": "images of engines have 5 to 20 GB and are pulled once a node; one that has the image starts in seconds",
    "load": "weights from S3 or a network volume are read at its speed; look at `kubectl logs` whether it goes on",
}


def _of_scheduling(pod: Pod, events: list[Event]) -> list[Trouble]:
    scheduled = pod.condition("PodScheduled")
    if scheduled is not None and scheduled.is_true:
        return []
    said = scheduled.message if scheduled is not None else ""
    if not said:
        said = next((event.message for event in reversed(events) if event.reason == "FailedScheduling"), "")
    return _all_signs(said, _SCHEDULING, "Unschedulable", "no node takes the pod") if said else []


def _of_containers(pod: Pod, events: list[Event], logs: Mapping[str, str]) -> list[Trouble]:
    found: list[Trouble] = []
    # What a registry said is in the event of an attempt; the status soon only says that there will be another one.
    attempt = next((event.message for event in reversed(events) if event.reason == "Failed"), "")
    for container in _all(pod):
        waiting = container.state.waiting
        if waiting is not None and waiting.reason in _PULLING:
            said = f"{waiting.reason}: {waiting.message} {attempt}"
            found.append(_first_sign(said, _IMAGE, f"container {container.name}"))
        elif waiting is not None and waiting.reason == "CreateContainerConfigError":
            found.append(_first_sign(waiting.message, _MOUNTING[2:3], f"container {container.name}"))
        elif (end := _end(container)) is not None and not container.ready:
            found.append(_of_end(container, end, logs.get(container.name, "") or end.message))
        elif waiting is not None and waiting.reason not in (*_CREATING, *_CRASHING):
            found.append(Trouble(waiting.reason, f"container {container.name} waits", said=_cut(waiting.message)))
    return found


def _of_end(container: ContainerStatus, end: Terminated, log: str) -> Trouble:
    who = f"container {container.name}"
    if end.reason == "OOMKilled":
        return Trouble(
            "OutOfMemory",
            f"{who}: the kernel ended it, its memory limit was reached",
            "raise memory in spec.worker.resources, or give the cache less",
        )
    for sign in _LOGS:
        if match := sign.pattern.search(log):
            return Trouble(sign.reason, f"{who}: {sign.what}", sign.remedy, _cut(_line_of(log, match.start())))
    times = f", {container.restart_count} times by now" if container.restart_count > 1 else ""
    hint = " (killed)" if end.exit_code == _KILLED else ""
    last = next((line for line in reversed(log.splitlines()) if line.strip()), "")
    return Trouble(
        "Crashing",
        f"{who}: it ended with status {end.exit_code}{hint}{times}",
        "see its log: `kubectl logs -p`",
        _cut(last),
    )


def _of_mounts(pod: Pod, events: list[Event]) -> list[Trouble]:
    if pod.became("PodScheduled") is None or any(each.state.running or _end(each) for each in _all(pod)):
        return []
    failed = [event for event in events if event.reason in ("FailedMount", "FailedAttachVolume", "FailedMapVolume")]
    return [_first_sign(failed[-1].message, _MOUNTING)] if failed else []


def _of_probes(events: list[Event]) -> list[Trouble]:
    unhealthy = next((event for event in reversed(events) if event.reason == "Unhealthy"), None)
    if unhealthy is None:
        return []
    if status := re.search(r"statuscode: (\d+)", unhealthy.message):
        return [
            Trouble(
                "ProbeRefused",
                f"the engine answers its probe with status {status[1]}",
                "503 while it loads is usual; otherwise look at path and port in spec.worker.probes and "
                "spec.loadBalancer.healthCheckPath",
                _cut(unhealthy.message),
                is_passing=status[1] == "503",
            )
        ]
    return []


def _of_joining(phase: Phase) -> list[Trouble]:
    if not phase.is_slow:
        return []
    return [
        Trouble(
            "RouterAway",
            "the engine answers, but the router has not let it in",
            "see whether the router's pod runs and reaches the worker: `kubectl logs` of its router-container",
        )
    ]


def _first_sign(said: str, signs: Iterable[_Sign], who: str = "") -> Trouble:
    for sign in signs:
        if match := sign.pattern.search(said):
            return _trouble(sign, match, said, who)
    return Trouble("NotStarted", f"{who} cannot be started", said=_cut(said))


def _all_signs(said: str, signs: Iterable[_Sign], reason: str, what: str) -> list[Trouble]:
    found = [_trouble(sign, match, said) for sign in signs for match in [sign.pattern.search(said)] if match]
    return found or [Trouble(reason, what, said=_cut(said))]


def _trouble(sign: _Sign, match: re.Match[str], said: str, who: str = "") -> Trouble:
    what = sign.what.format(**{name: (text or "").rstrip(".,;") for name, text in match.groupdict().items()})
    return Trouble(sign.reason, f"{who}: {what}" if who else what, sign.remedy, _cut(said), sign.is_passing)


def _all(pod: Pod) -> list[ContainerStatus]:
    return [*pod.status.init_container_statuses, *pod.status.container_statuses]


def _end(container: ContainerStatus) -> Terminated | None:
    """Return how a container ended, unless it ended well or runs again."""
    if container.state.running is not None:
        return None
    ended = container.state.terminated or container.last_state.terminated
    return ended if ended is not None and ended.exit_code else None


def _line_of(text: str, position: int) -> str:
    return text[text.rfind("\n", 0, position) + 1 :].split("\n", 1)[0]


def _cut(said: str) -> str:
    line = " ".join(said.split())
    return line if len(line) <= _LONGEST_SAID else f"{line[: _LONGEST_SAID - 1]}…"
