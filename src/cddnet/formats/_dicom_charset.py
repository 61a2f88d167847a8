"""Character sets of DICOM texts: the defined terms of the standard, and nothing else.

pydicom takes any codec of Python for a SpecificCharacterSet. One of them needs the square of the
time, others give characters that no file or database can hold.
Source: PS3.3 C.12.1.1.2.
"""

from __future__ import annotations

import re

from pydicom import charset

_NO_LETTER = re.compile(r"[\W_]+")


class _DefinedTerms(dict[str, str]):
    """Python's codec of each defined term, however its blanks are written; else the default one."""

    def __init__(self, codecs: dict[str, str]) -> None:
        super().__init__(codecs)
        self._spellings = {_plain(term): codec for term, codec in codecs.items()}
        # pydicom looks up the codecs of a term again.
        self._codecs = frozenset(codecs.values())

    def __missing__(self, term: str) -> str:
        if term in self._codecs:
            return term
        return self._spellings.get(_plain(term), charset.default_encoding)


def _plain(term: str) -> str:
    return _NO_LETTER.sub("", term).upper()


def take_defined_terms_only() -> None:
    """Let pydicom take no other terms, in items of sequences and messages of the network too."""
    if not isinstance(charset.python_encoding, _DefinedTerms):
        charset.python_encoding = _DefinedTerms(charset.python_encoding)


def without_surrogates(text: str) -> str:
    """Text that can be encoded."""
    return text.encode("utf-8", "ignore").decode("utf-8")
