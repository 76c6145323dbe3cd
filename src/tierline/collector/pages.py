"""Pages of metrics in Prometheus' text format: read whole or not at all, labelled, and put together on one page. Pure.

Rules: a label that a sample has already stays as it is; vLLM's own ``model_name`` for one is what clients ask for.
Names stay as they are, those of counters without ``_total`` too, which TGI has and prometheus-client would change.
Times that a page gives its samples are left out: what is shown is the last reading.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from math import isinf, isnan

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tierline.errors import WireError

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_UNREADABLE = (ValueError, IndexError)
"""What prometheus-client's parser raises where a page is none."""
_COUNTER = re.compile(r"^#[ \t]+TYPE[ \t]+(\S+)[ \t]+counter[ \t]*$", re.MULTILINE)
_TOTAL = "_total"
_PLAIN = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_WRITTEN_TYPES = {"unknown": "untyped"}


def read_page(content: bytes, labels: Mapping[str, str]) -> list[Metric]:
    """Return the families of a page, with ``labels`` on each sample that does not have them.

    Raises
    ------
    WireError
        The page cannot be read.
    """
    try:
        text = content.decode()
        families = list(text_string_to_metric_families(text))
    except _UNREADABLE as error:
        raise WireError(f"it is no page of metrics: {str(error)[:200]}") from None
    plain = {name for name in _COUNTER.findall(text) if not name.endswith(_TOTAL)}
    for family in families:
        is_renamed = family.type == "counter" and family.name in plain
        family.samples = [_labelled(sample, labels, is_renamed=is_renamed) for sample in family.samples]
    return families


def _labelled(sample: Sample, labels: Mapping[str, str], *, is_renamed: bool) -> Sample:
    name = sample.name.removesuffix(_TOTAL) if is_renamed else sample.name
    return Sample(name, {**labels, **sample.labels}, sample.value)


def joined(pages: Iterable[Sequence[Metric]]) -> list[Metric]:
    """Return the families of several pages; one that several have is there once, with the samples of all.

    Prometheus takes one type for each name: of two that differ, the family that came later goes by the first one's.
    """
    found: dict[str, Metric] = {}
    for families in pages:
        for family in families:
            known = found.get(family.name)
            if known is None:
                known = found[family.name] = Metric(family.name, family.documentation, family.type)
            known.samples.extend(family.samples)
    return list(found.values())


def exposition(families: Iterable[Metric]) -> bytes:
    """Return the page of these families.

    >>> exposition(read_page(b"# TYPE calls counter\\ncalls 3\\n", {"pod_name": "demo"})).splitlines()
    [b'# HELP calls ', b'# TYPE calls counter', b'calls{pod_name="demo"} 3.0']
    """
    lines: list[str] = []
    for family in families:
        is_total = family.type == "counter" and all(sample.name.endswith(_TOTAL) for sample in family.samples)
        name = _name(f"{family.name}{_TOTAL}" if is_total else family.name)
        text = family.documentation.replace("\\", r"\\").replace("\n", r"\n")
        lines.append(f"# HELP {name} {text}")
        lines.append(f"# TYPE {name} {_WRITTEN_TYPES.get(family.type, family.type)}")
        lines.extend(_line(sample) for sample in family.samples)
    return "".join(f"{line}\n" for line in lines).encode()


def _line(sample: Sample) -> str:
    labels = [f'{_name(name)}="{_escaped(value)}"' for name, value in sample.labels.items() if value]
    if not _PLAIN.fullmatch(sample.name):
        labels.insert(0, _name(sample.name))
        return f"{{{','.join(labels)}}} {_number(sample.value)}"
    return f"{sample.name}{{{','.join(labels)}}} {_number(sample.value)}"


def _number(value: float) -> str:
    if isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return "NaN" if isnan(value) else repr(float(value))


def _name(name: str) -> str:
    """Return a name as it is written: in quotes, if it has characters that names had not before UTF-8 was allowed."""
    return name if _PLAIN.fullmatch(name) else f'"{_escaped(name)}"'


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
