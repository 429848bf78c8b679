"""Text that is not ours (names, messages, what models say) made fit to be read.

Whatever could move a cursor, reorder a line, hide itself or flood a page is shown as what it is.
Escaping for HTML or for a terminal's markup is left to the library that draws.
"""

import unicodedata
from dataclasses import dataclass

MAX_MESSAGE_CHARS = 300

_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Controls, format characters (bidi and zero-width ones), lone surrogates, private use, unassigned,
line and paragraph separators."""

_HIDDEN_LETTERS = frozenset(
    (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))  # variation selectors
) | {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0}
"""What has no shape although Unicode does not call it a control character."""


def clean(text: object, max_chars: int = MAX_MESSAGE_CHARS) -> str:
    """Return one line that cannot move the cursor, hide itself or flood the screen."""
    raw = str(text)
    cut = raw[: max_chars + 1]  # a message of megabytes is not worth escaping whole
    shown = "".join(c if _is_seen(c) else c.encode("unicode_escape").decode() for c in cut)
    return shown if len(shown) <= max_chars else shown[: max_chars - 1] + "…"


def _is_seen(char: str) -> bool:
    return char.isprintable() and ord(char) not in _HIDDEN_LETTERS


@dataclass(frozen=True, slots=True)
class Excerpt:
    """Some lines of a text, with everything hidden made visible.

    Attributes:
        text: What is shown.
        num_left_out: Characters of the text that are not shown.
    """

    text: str
    num_left_out: int = 0


def excerpt(text: str, max_chars: int, *, end: bool = False) -> Excerpt:
    """Return the beginning of a text, or its end, in which nothing is hidden.

    Line breaks and tabs stay; every other character without a shape of its own becomes its number,
    as in `⟨U+202E⟩`.

    Args:
        text: Any string, lone surrogates and NUL among its characters.
        max_chars: Characters of it that are shown at most.
        end: Whether its end is worth more than its beginning, as in a prompt behind shots.
    """
    left_out = max(0, len(text) - max_chars)
    cut = text[left_out:] if end else text[: len(text) - left_out]
    return Excerpt(cut.translate(_SHAPES), left_out)


class _Shapes(dict[int, str]):
    """What `str.translate` puts in place of a character; learnt as characters are met."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        hidden = unicodedata.category(char) in _HIDDEN_CATEGORIES or code in _HIDDEN_LETTERS
        shape = f"⟨U+{code:04X}⟩" if hidden and char not in "\n\t" else char
        self[code] = shape
        return shape


_SHAPES = _Shapes()
