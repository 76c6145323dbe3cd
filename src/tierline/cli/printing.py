"""What commands print: one JSON document, or tables for people. Names come from clients and are printed harmless.

At a terminal a table is as wide as that; anywhere else it is as wide as its content, so that no name is cut.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from tierline.configuration import format_byte_size

__all__ = ["Output", "byte_size", "duration", "harmless", "percentage", "plural"]

_UNCUT_COLUMNS = 100_000
byte_size = format_byte_size


class Output:
    """Standard output of one command.

    Parameters
    ----------
    is_json
        The command prints one JSON document and nothing else.
    """

    def __init__(self, *, is_json: bool) -> None:
        self.is_json = is_json
        width = None if sys.stdout.isatty() else _UNCUT_COLUMNS
        self.console = Console(width=width, markup=False, highlight=False, emoji=False)
        self._errors = Console(stderr=True, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def document(self, content: Any) -> None:
        """Print the JSON of anything that msgspec encodes."""
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(content), indent=2).decode() + "\n")

    def document_line(self, content: Any) -> None:
        """Print JSON on one line, at once."""
        sys.stdout.write(msgspec.json.encode(content).decode() + "\n")
        sys.stdout.flush()

    def line(self, text: str) -> None:
        """Print a sentence."""
        self.console.print(harmless(text), soft_wrap=True)

    def note(self, text: str) -> None:
        """Say something on standard error, where it is in nobody's way."""
        self._errors.print(harmless(text))

    def facts(self, facts: Iterable[tuple[str, str]]) -> None:
        """Print a name and a value a line."""
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for name, value in facts:
            table.add_row(name, Text(harmless(value)))
        self.show(table)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print rows under their columns; a column whose name begins with ``>`` is flush right."""
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
        for name in columns:
            if name.startswith(">"):
                table.add_column(name[1:], justify="right", no_wrap=True)
            else:
                table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*(Text(harmless(value)) for value in row))
        self.show(table)

    def show(self, content: RenderableType) -> None:
        """Print anything; without the blanks at the ends of lines where somebody may cut and compare these."""
        if self.console.is_terminal:
            self.console.print(content)
            return
        with self.console.capture() as capture:
            self.console.print(content)
        for line in capture.get().splitlines():
            sys.stdout.write(line.rstrip() + "\n")
        sys.stdout.flush()

    def progress(self, what: str) -> Progress:
        """Return a bar on standard error; it draws itself at a terminal only."""
        return Progress(
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._errors,
            disable=not self._errors.is_terminal,
        )

    @contextmanager
    def transfer(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Give what moves a bar of bytes on standard error by so many; it draws itself at a terminal only."""
        columns = (TextColumn(what), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
        with Progress(*columns, console=self._errors, disable=not self._errors.is_terminal) as bar:
            task = bar.add_task(what, total=total)
            yield lambda size: bar.advance(task, size)


def harmless(text: str) -> str:
    """Return ``text`` with what a terminal would obey (escape sequences, line breaks) spelled out."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def duration(seconds: float | None) -> str:
    """Return a time for people: ``0.4 s``, ``12 s``, ``3 min 5 s``, ``2 h 10 min``, ``4 d 3 h``; ``-`` for none."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, size, smaller, smaller_size in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // smaller_size
            return f"{whole // size} {unit} {rest} {smaller}" if rest else f"{whole // size} {unit}"
    return f"{whole} s"


def percentage(part: float, whole: float) -> str:
    """Return a share: ``98.5 %``; ``-`` of nothing."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def plural(count: int, noun: str) -> str:
    """Return ``1 object`` or ``1,234 objects``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
