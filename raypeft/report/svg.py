"""A figure as SVG that obeys a page's strict rules: no styles of its own, no fixed colours.

Decides nothing about what is drawn. matplotlib writes colours and fonts as `style` attributes,
which a content security policy without `unsafe-inline` ignores; here they become attributes and
classes, so that the page's style sheet decides colours in light, dark and print. Equal figures are
equal text: names inside are derived from the figure's key, and nothing says when it was made.
"""

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final
from xml.etree import ElementTree

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK: Final = "#000001"
MUTED: Final = "#000002"
GRID: Final = "#000003"
BAND: Final = "#000004"
GAIN: Final = "#000005"
LOSS: Final = "#000006"
PAPER: Final = "#000007"

CLASSES: Mapping[str, str] = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    BAND: "band",
    GAIN: "gain",
    LOSS: "loss",
    PAPER: "paper",
}
"""What stands for each colour in the style sheet, behind `f-` as a fill and `s-` as a stroke."""

RIGHT, BOTTOM, TOP = 12.0, 36.0, 6.0
"""Margins in points, room for labels of the axis across among them."""

SVG = "http://www.w3.org/2000/svg"
XLINK = "{http://www.w3.org/1999/xlink}href"
KEPT_STYLES = frozenset(
    (
        *("fill", "stroke", "opacity", "fill-opacity", "stroke-opacity", "stroke-width"),
        *("stroke-dasharray", "stroke-dashoffset", "stroke-linecap", "stroke-linejoin"),
        *("text-anchor", "font-size", "font-weight"),
    )
)
SETTINGS: Any = {
    "svg.fonttype": "none",  # text stays text: it can be selected, searched and read aloud
    "text.parse_math": False,  # a name may hold dollars
    "font.size": 9.0,
    "axes.linewidth": 0.8,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}

_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_FONT_SIZE = re.compile(r"([\d.]+)px")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


@contextmanager
def drawing(width: float, height: float, left: float) -> Iterator[tuple[Figure, Axes]]:
    """Give a figure with one pair of axes to draw on, under the page's settings.

    Args:
        width: In points.
        height: In points.
        left: Room for the labels of the axis up, in points. Measuring them, as matplotlib's own
            layouts do, takes longer than drawing.
    """
    with rc_context(SETTINGS), warnings.catch_warnings():
        # The browser has fonts of its own for what matplotlib's lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure = Figure(figsize=(width / 72, height / 72))
        figure.subplots_adjust(
            left=left / width,
            right=1 - RIGHT / width,
            bottom=BOTTOM / height,
            top=1 - TOP / height,
        )
        yield figure, figure.subplots()


def to_svg(figure: Figure, *, key: str, title: str, description: str) -> Markup:
    """Return a figure as an `svg` element; call it where the figure was drawn.

    Args:
        figure: The figure.
        key: A name that no other figure of the page has; letters, digits and hyphens.
        title: What it shows, for whoever cannot see it.
        description: Where its numbers are, or what is to be seen.
    """
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": key}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    _drop(root, {f"{{{SVG}}}metadata", f"{{{SVG}}}style"})
    _rename(root, key)
    for element in root.iter():
        _restyle(element)
    _describe(root, key, title, description)
    ElementTree.register_namespace("", SVG)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _drop(root: ElementTree.Element, tags: set[str]) -> None:
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in tags:
                parent.remove(child)


def _rename(root: ElementTree.Element, key: str) -> None:
    """Keep the names that something refers to, each made unique in the page."""
    used: set[str] = set()
    for element in root.iter():
        target = element.attrib.pop(XLINK, "")
        if target:
            used.add(target.removeprefix("#"))
            element.set("href", f"#{key}-{target.removeprefix('#')}")
        for name, value in element.attrib.items():
            if found := _REFERENCE.findall(value):
                used.update(found)
                element.set(name, _REFERENCE.sub(rf"url(#{key}-\1)", value))
    for element in root.iter():
        own = element.attrib.pop("id", "")
        if own in used:
            element.set("id", f"{key}-{own}")


def _restyle(element: ElementTree.Element) -> None:
    items = (item.partition(":") for item in element.get("style", "").split(";"))
    styles = {name.strip(): value.strip() for name, _, value in items if value}
    element.attrib.pop("style", None)
    if size := _FONT_SIZE.search(styles.get("font", "")):
        styles["font-size"] = size.group(1)
    styles |= {
        name: element.attrib.pop(name) for name in ("fill", "stroke") if name in element.attrib
    }
    classes = []
    for name, value in styles.items():
        if value in CLASSES and name in {"fill", "stroke"}:
            classes.append(f"{name[0]}-{CLASSES[value]}")
        elif name in KEPT_STYLES:
            element.set(name, value)
    if classes:
        element.set("class", " ".join(classes))
    for name, value in element.attrib.items():
        if name != "href":
            element.set(name, _NUMBER.sub(lambda found: f"{float(found.group()):.2f}", value))


def _describe(root: ElementTree.Element, key: str, title: str, description: str) -> None:
    for position, (name, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(f"{{{SVG}}}{name}", {"id": f"{key}-{name}"})
        element.text = text
        root.insert(position, element)
    width = root.get("width", "").removesuffix("pt")
    root.attrib |= {
        "role": "img",
        "aria-labelledby": f"{key}-title {key}-desc",
        "width": width,
        "height": root.get("height", "").removesuffix("pt"),
    }
