"""Formulas as MathML, which browsers set by themselves: ``formula("x", "←", frac("a", "b"))``.

A part is a piece of MathML made here, or a text: letters become identifiers, figures numbers, all
else operators; "log" and other words are upright.
"""

from __future__ import annotations

import re
from html import escape

_TOKEN = re.compile(r"\s*([A-Za-zα-ωΑ-Ω∇]+[̃̂]?|[0-9][0-9.,]*|.)")


def formula(*parts: str) -> str:
    """A formula; of several, formula(…) + formula(…), those that fit are on one line."""
    return f'<math display="block">{row(*parts)}</math>'


def row(*parts: str) -> str:
    """Parts one after the other; made a group."""
    return f"<mrow>{''.join(map(_part, parts))}</mrow>"


def sub(base: str, below: str) -> str:
    """base with an index."""
    return f"<msub>{row(base)}{row(below)}</msub>"


def sup(base: str, above: str) -> str:
    """base to a power."""
    return f"<msup>{row(base)}{row(above)}</msup>"


def frac(above: str, below: str) -> str:
    """A fraction."""
    return f"<mfrac>{row(above)}{row(below)}</mfrac>"


def root(inside: str) -> str:
    """A square root."""
    return f"<msqrt>{row(inside)}</msqrt>"


def words(text: str) -> str:
    """Words beside symbols, with their spaces."""
    return f"<mtext>\u00a0{escape(text)}\u00a0</mtext>"


def superscript(number: int) -> str:
    """A whole number as a power is written in plain text."""
    return str(number).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def norm(*parts: str) -> str:
    """The square of a Euclidean norm."""
    return sup(row("‖", *parts, "‖"), "2")


def _part(part: str) -> str:
    if part.startswith("<"):
        return part
    return "".join(_token(found[1]) for found in _TOKEN.finditer(part) if found[1].strip())


def _token(token: str) -> str:
    if token[0].isdigit():
        return f"<mn>{token}</mn>"
    if token == "∇":
        return "<mo>∇</mo>"
    if token[0].isalpha():
        # Upright where it has several letters; what it is applied to stands apart from it then.
        apart = '<mspace width="0.17em"/>' if token[1:].isalpha() else ""
        return f"<mi>{escape(token)}</mi>{apart}"
    return '<mo lspace="0" rspace="0.25em">,</mo>' if token == "," else f"<mo>{escape(token)}</mo>"


__all__ = ["formula", "frac", "norm", "root", "row", "sub", "sup", "superscript", "words"]
