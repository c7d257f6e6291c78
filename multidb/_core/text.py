"""Folding text for search: the same on every backend, whatever the server's locale."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

# Stands between two folded fields that are searched as one text; fold() never lets it through.
SEPARATOR: Final = "\x1f"

_DOTTED = str.maketrans({"İ": "i", "ı": "i", SEPARATOR: " "})
# A small dotted i is already dotted: a combining dot above it (or above its stacked marks) changes nothing.
_SOFT_DOT = re.compile("i\u0307+")


def fold(text: str) -> str:
    """
    Return *text* as search compares it: NFKC, case folded, dotted and dotless i made equal.

    "IŞIK", "Işık" and "ışık" fold to the same; folding twice changes nothing.
    """
    if text.isascii():
        return text.lower().replace(SEPARATOR, " ")
    folded = text
    for _ in range(
        4
    ):  # Folding can denormalise and normalising can unfold; three rounds reach the fixed point.
        before = folded
        folded = unicodedata.normalize("NFKC", folded).translate(_DOTTED).casefold()
        folded = _SOFT_DOT.sub("i", unicodedata.normalize("NFKC", folded))
        if folded == before:
            break
    return folded
