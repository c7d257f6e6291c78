"""Folding: what search compares."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multidb._core.text import SEPARATOR, fold

many = settings(max_examples=500, deadline=None)

# Where folding and normalising get into each other's way: i and its dots, stacked marks, what folds to several letters,
# ligatures, the Greek iota below, Cherokee (which folds upwards), Hangul, full-width and mathematical letters.
_TRICKY = "iIıİíÍ\u0307\u0345\u0327\u030c\u0323ßẞŉǰΐ\u1f80\u1fb3\u1ffcΣσςſﬁﬃﬅ\u13a0\uab70가\u1100\u1161ＩｉⅨ\U0001d408\u212a\u2126º\u2075\u00bc"

texts = st.text(max_size=30)
tricky = st.text(st.sampled_from(_TRICKY), max_size=12)


@pytest.mark.parametrize(
    ("folded", "spellings"),
    [
        ("ışık", ("IŞIK", "Işık", "ışık", "IşıK", "İŞİK", "işik", "I\u015eIK", "IS\u0327IK", "İş\u0131k")),
        (
            "istanbul",
            ("İstanbul", "istanbul", "ISTANBUL", "İSTANBUL", "ıstanbul", "I\u0307stanbul", "i\u0307stanbul"),
        ),
        ("strasse", ("Straße", "STRASSE", "STRAẞE", "strasse")),
        ("σοφος", ("ΣΟΦΟΣ", "σοφος", "Σοφος", "σοφοσ")),
        ("fi", ("ﬁ", "FI", "Fi", "ﬁ")),
        ("42 km", ("４２ ＫＭ", "42 km", "42 \u212am", "42\u00a0km")),
        ("çay", ("ÇAY", "Çay", "C\u0327ay", "çay")),
        ("привет", ("ПРИВЕТ", "Привет", "привет")),
    ],
)
def test_same(folded: str, spellings: tuple[str, ...]) -> None:
    """Spellings that differ in case, in the dot of an i, or in their form in Unicode fold to the same."""
    assert {fold(folded)} == {fold(spelling) for spelling in spellings}


def test_turkish() -> None:
    """Dotted and dotless i are made equal, as capitals and as small letters; nothing else of Turkish is lost."""
    assert "isik" == fold("ISIK") == fold("ısık") == fold("İSİK")
    assert "işik" == fold("IŞIK") == fold("Işık") == fold("ışık")
    assert 4 == len({fold("ışık"), fold("ısık"), fold("şık"), fold("ğışık")})


@pytest.mark.parametrize(
    ("one", "other"),
    [("resume", "résumé"), ("a", "á"), ("o", "ö"), ("s", "ş"), ("%", "_"), ("a b", "ab"), ("*", "")],
)
def test_different(one: str, other: str) -> None:
    """Marks count, and so do spaces; no character stands for others."""
    assert fold(one) != fold(other)


def test_ordinary_characters() -> None:
    """What is special in a pattern is left as it is."""
    pattern = "100%_*?.^$[a-z]\\'\""

    assert pattern == fold(pattern)
    assert pattern + "ğ" == fold(pattern + "Ğ")


@many
@given(text=texts | tricky)
def test_idempotent(text: str) -> None:
    """Folding what is folded changes nothing."""
    assert fold(text) == fold(fold(text))


def test_every_character() -> None:
    """That goes for every character of Unicode, alone and below a dot."""
    everything = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code <= 0xDFFF]
    whole = fold("\n".join(everything)).split("\n")
    changed = [text for text in everything if unicodedata.normalize("NFKC", text).casefold() != text]

    assert [] == [text for text in whole if fold(text) != text]
    assert [] == [text for text in changed if fold(fold(text + "\u0307")) != fold(text + "\u0307")]


@many
@given(text=texts | tricky)
def test_separator_is_kept_out(text: str) -> None:
    """The character that backends put between two fields never comes out, so no match spans two fields."""
    assert SEPARATOR not in fold(text)
    assert SEPARATOR not in fold(f"{text}{SEPARATOR}{text}")


@many
@given(text=st.text(st.characters(codec="ascii"), max_size=30))
def test_shortcut_for_ascii(text: str) -> None:
    """Text in ASCII folds to what it folds to beside other text."""
    assert fold(text) + "\u4e00" == fold(text + "\u4e00")


@many
@given(text=texts)
def test_forms_of_unicode(text: str) -> None:
    """The four normal forms of a text fold to the same."""
    assert 1 == len({fold(unicodedata.normalize(form, text)) for form in ("NFC", "NFD", "NFKC", "NFKD")})
