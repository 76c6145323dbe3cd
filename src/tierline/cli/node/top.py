"""``top``: the node, live. At a terminal one screen that is drawn again; anywhere else one frame after the other.

It outlives the node: while that cannot be reached, the last frame stays and says since when.
"""

import asyncio
import os
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from tierline.cli.node.connecting import asks_node
from tierline.errors import AccessDenied, NodeRefused, NodeUnavailable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tierline.cli.node.frame import Reading, Silence
    from tierline.cli.printing import Output
    from tierline.client.admin import NodeAdmin
    from tierline.wire.admin import NamespaceFigures

LONGEST_ANSWER_S = 5.0
_PAGE_COLUMNS = 100
_OTHER_LINES = 20
"""Lines of a frame above its list of buckets, which gets the rest of the screen."""


@asks_node
async def top(
    node: "NodeAdmin",
    output: "Output",
    interval: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Time between two readings.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print one frame, after one interval, and end.")] = False,
) -> None:
    """Show what the node holds and does, live: bytes by state, hit rate, leases, what goes and why, busiest buckets.

    Ends with q or Ctrl-C. Goes on while the node restarts. Where standard output is no terminal, frames are printed one
    after the other; with --json, a line of JSON for each reading.

    \b
    Examples:
      tierline node top
      tierline node top --interval 0.5
      tierline node top --once
      tierline node top --json --interval 10 >> node.jsonl
    """
    stop = asyncio.Event()
    view = _View(node, now=await _read(node))  # a node that does not answer at first is an error and no view
    with _stopped_by_user(stop), _canvas(output, view, is_screen=not once) as draw:
        if not once:
            draw()
        while not await _passes(interval, stop):
            await view.look(gives_up=once)
            draw()
            if once:
                return


class _View:
    """The last two readings of a node, and whether it still answers."""

    def __init__(self, node: "NodeAdmin", now: "Reading") -> None:
        self.before: Reading | None = None
        self.now = now
        self.silence: Silence | None = None
        self._node = node

    async def look(self, *, gives_up: bool) -> None:
        """Read again; a node that cannot be asked is noted, or its error raised."""
        from tierline.cli.node.frame import Silence

        try:
            latest = await _read(self._node)
        except (NodeUnavailable, NodeRefused) as error:
            if gives_up or (isinstance(error, NodeRefused) and error.status < 500):
                raise
            since = self.silence.since if self.silence is not None else time.strftime("%H:%M:%S")
            self.silence = Silence(since, str(error).removeprefix(f"{self._node.url}: "))
        else:
            self.before, self.now, self.silence = self.now, latest, None

    def frame(self, width: int, busiest: int) -> "RenderableType":
        """Return what is to be seen."""
        from tierline.cli.node.frame import frame

        return frame(self._node.url, self.before, self.now, self.silence, width=width, busiest=busiest)


async def _read(node: "NodeAdmin") -> "Reading":
    from tierline.cli.node.frame import Reading

    try:
        async with asyncio.timeout(LONGEST_ANSWER_S):
            try:
                namespaces: list[NamespaceFigures] | None = await node.buckets()
            except AccessDenied:
                namespaces = None  # whoever may not ask for the node's figures either is refused below
            return Reading(time.monotonic(), await node.stats(), namespaces)
    except TimeoutError as error:
        raise NodeUnavailable(f"{node.url}: no answer within {LONGEST_ANSWER_S:.0f} s") from error


async def _passes(seconds: float, stop: asyncio.Event) -> bool:
    """Wait; True if the user wants to stop."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return False
    return True


@contextmanager
def _canvas(output: "Output", view: _View, *, is_screen: bool) -> Iterator[Callable[[], None]]:
    """Give the function that draws the view: on the whole screen, below the last frame, or as JSON."""
    from rich.live import Live

    console = output.console

    def print_frame() -> None:
        output.show(view.frame(min(console.width, _PAGE_COLUMNS), busiest=10))
        output.show("")

    def print_reading() -> None:
        if view.silence is None:
            output.document_line({"stats": view.now.stats, "namespaces": view.now.namespaces})

    if output.is_json or not (is_screen and console.is_terminal):
        yield print_reading if output.is_json else print_frame
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:

        def draw() -> None:
            width, height = console.size
            live.update(view.frame(width, busiest=max(height - _OTHER_LINES, 1)), refresh=True)

        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGWINCH, draw)
        try:
            yield draw
        finally:
            loop.remove_signal_handler(signal.SIGWINCH)


@contextmanager
def _stopped_by_user(stop: asyncio.Event) -> Iterator[None]:
    """Set ``stop`` on Ctrl-C, SIGTERM and, where a terminal is read, on q."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        if sys.stdin.isatty() and sys.stdout.isatty():
            with _keys(loop, stop):
                yield
        else:
            yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


@contextmanager
def _keys(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> Iterator[None]:
    """Read single keys; the terminal is given back as it was."""
    terminal = sys.stdin.fileno()
    former = termios.tcgetattr(terminal)

    def pressed() -> None:
        if b"q" in os.read(terminal, 64).lower():
            stop.set()

    tty.setcbreak(terminal)
    loop.add_reader(terminal, pressed)
    try:
        yield
    finally:
        loop.remove_reader(terminal)
        termios.tcsetattr(terminal, termios.TCSADRAIN, former)
