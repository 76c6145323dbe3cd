"""The colours of the router's page: how far they stand out, in both themes, by WCAG 2.2's formula."""

import importlib.resources
import re

import pytest

SHEET = (importlib.resources.files("tierline") / "router" / "dashboard" / "style.css").read_text()
DARK = SHEET.index("prefers-color-scheme: dark")
TEXT, SHAPE = 4.5, 3.0
"""Least ratios of success criteria 1.4.3, for text, and 1.4.11, for what must be seen to be understood."""


def colours(theme: str) -> dict[str, tuple[float, ...]]:
    """Return a theme's variables; the dark one replaces those of the light one that are colours."""
    found = re.findall(r"--([a-z-]+): #([0-9a-f]{3,6});", SHEET[:DARK])
    if theme == "dark":
        found += re.findall(r"--([a-z-]+): #([0-9a-f]{3,6});", SHEET[DARK : SHEET.index("* {", DARK)])
    wide = {name: digits if len(digits) == 6 else "".join(digit * 2 for digit in digits) for name, digits in found}
    return {name: tuple(int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)) for name, digits in wide.items()}


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    dim, bright = sorted(map(luminance, (one, other)))
    return (bright + 0.05) / (dim + 0.05)


def luminance(colour: tuple[float, ...]) -> float:
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(
    ("name", "behind", "least"),
    [
        *((text, behind, TEXT) for text in ("ink", "quiet", "bad") for behind in ("card", "paper")),
        *((text, "card", TEXT) for text in ("accent", "hit", "miss")),
        ("ink", "soft", TEXT),
        ("on-accent", "accent", TEXT),
        *((line, "card", SHAPE) for line in ("hit", "miss", "good", "bad", "warn", "accent", "edge")),
        *((bar, "soft", SHAPE) for bar in ("accent", "engine", "store", "computed")),
        ("accent", "paper", SHAPE),
    ],
)
def test_what_is_written_and_drawn_stands_out(theme: str, name: str, behind: str, least: float) -> None:
    known = colours(theme)
    assert contrast(known[name], known[behind]) >= least
