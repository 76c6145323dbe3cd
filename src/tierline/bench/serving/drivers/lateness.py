"""How late another load generator sent its requests, reckoned from when each was sent and answered.

The rule is that of our own client (:mod:`tierline.bench.serving.sending`): a request could first have gone when it
came, when the answer it follows was there, or when a place became free, whichever came last. Where a driver's records
do not say when that was, nothing is reckoned, and the reason is told: what nobody checked is never called checked.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from tierline.bench.serving.records import Record
from tierline.bench.serving.results import Settings
from tierline.bench.serving.running import TRACE
from tierline.bench.serving.trace_files import Traced


@dataclass(frozen=True)
class Reckoned:
    """Records with how late each was sent, or why that is not known.

    Parameters
    ----------
    records
        In the order in which they were sent.
    unknown
        Why nobody knows; empty: it is known.
    """

    records: Sequence[Record]
    unknown: str = ""


def reckon(records: Sequence[Record], settings: Settings, trace: Sequence[Traced] = ()) -> Reckoned:
    """Reckon how late each of a driver's requests was sent, where the driver does not tell that itself.

    Parameters
    ----------
    trace
        What is replayed, where it is a trace.
    """
    sent = sorted(records, key=lambda record: record.sent_s)
    if all(record.late_s is not None for record in sent):
        return Reckoned(sent)
    if unknown := _why_unknown(sent, settings):
        return Reckoned(sent, unknown)
    ends = sorted(record.ended_s for record in sent)
    came = _came(len(sent), settings, trace)
    # Where a driver's own time begins nobody knows: its most punctual request is taken for punctual.
    began = min((record.sent_s - at_s for record, at_s in zip(sent, came, strict=True)), default=0.0)
    answered: dict[str, float] = {}
    late = []
    for number, (record, at_s) in enumerate(zip(sent, came, strict=True)):
        due_s = max(began + at_s, answered.get(record.family, 0.0))
        if settings.max_concurrency is not None and number >= settings.max_concurrency:
            # With every place taken, the earliest answers have made room for as many requests.
            due_s = max(due_s, ends[number - settings.max_concurrency])
        answered[record.family] = record.ended_s
        late.append(replace(record, late_s=max(0.0, record.sent_s - due_s)))
    return Reckoned(late)


def _why_unknown(sent: Sequence[Record], settings: Settings) -> str:
    if settings.ramp is not None or (settings.request_rate is not None and settings.burstiness is not None):
        return "it does not tell at which times its requests were to come"
    if settings.max_concurrency is None:
        return ""
    if settings.ramp_s:
        return "it does not tell when its places opened"
    if settings.duration_s is not None:
        return "what the end of the run cut off had places that it does not tell of"
    if any(not record.is_good for record in sent):
        return "it does not tell for how long failed requests had their places"
    if settings.workload == "chats" and len({record.family for record in sent}) == len(sent) > settings.turns:
        return "it does not tell which requests are of one chat"
    return ""


def _came(count: int, settings: Settings, trace: Sequence[Traced]) -> Sequence[float]:
    """Return when the first, second, … request came, as far as that is a rule."""
    if settings.workload == TRACE:
        return [request.at_s for request in trace[:count]] + [0.0] * (count - len(trace))
    if settings.request_rate is not None:
        return [number / settings.request_rate for number in range(count)]
    return [0.0] * count
