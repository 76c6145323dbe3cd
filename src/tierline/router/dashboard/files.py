"""The page's own files: HTML, style and scripts as they are in the package, with the fields that keep it to itself.

Rule: nothing in them differs from request to request, so anybody may have them whom the router answers at all.
"""

import importlib.resources
from typing import NamedTuple

PAGE = b"/dashboard"
_TYPES = {
    "html": b"text/html; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "svg": b"image/svg+xml",
}
_OWN = ("style.css", "page.js", "chart.js", "chat.js", "events.js", "tables.js", "icon.svg")
_UPLOT = ("uPlot.min.css", "uPlot.iife.min.js")
SAFETY = (
    b"content-security-policy: default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    b"img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    b"require-trusted-types-for 'script'; trusted-types 'none'\r\n"
    b"x-content-type-options: nosniff\r\n"
    b"referrer-policy: no-referrer\r\n"
    b"cross-origin-opener-policy: same-origin\r\n"
    b"cross-origin-resource-policy: same-origin\r\n"
)
"""Field lines of every answer under :data:`PAGE`: no other host, no script or style but these files, in no frame, and
no text is ever read as markup."""


class File(NamedTuple):
    """One file."""

    content_type: bytes
    content: bytes


def read_files() -> dict[bytes, File]:
    """Return all files by their paths."""
    package = importlib.resources.files("tierline")
    own, uplot = package / "router" / "dashboard", package / "vendored" / "uplot"
    found = {PAGE: own / "page.html"}
    found |= {b"%b/%b" % (PAGE, name.encode()): own / name for name in _OWN}
    found |= {b"%b/%b" % (PAGE, name.encode()): uplot / name for name in _UPLOT}
    return {path: File(_TYPES[file.name.rpartition(".")[2]], file.read_bytes()) for path, file in found.items()}
