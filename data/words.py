"""From texts to the numbers of their words, and the vocabulary that numbers them."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from core.runtime import Runtime
from data.notes import note
from data.spec import Expected
from data.texts import MOST_WORDS, PAD, UNKNOWN

APOSTROPHE = "\N{RIGHT SINGLE QUOTATION MARK}"
# Accents and vowel signs that no single letter contains: to Python, they are no part of a word.
MARKS = "".join(
    c for c in map(chr, range(0x300, 0x20000)) if unicodedata.category(c) in ("Mn", "Mc")
)
# Letters and digits, with marks behind them and apostrophes between them; everything else only ends
# a word.
WORD = re.compile(rf"[^\W_]+(?:(?:[{MARKS}]|'(?=[^\W_]))[^\W_]*)*")


def split_words(text: str) -> list[str]:
    """The words of a text in lower case, in Unicode's form NFC, without punctuation.

    "Don't, please!" has the words "don't" and "please". A script without spaces between words, such
    as Chinese, would need them put in beforehand.
    """
    lower = unicodedata.normalize("NFC", text.lower())  # which may take letters and marks apart
    return WORD.findall(lower.replace(APOSTROPHE, "'"))


def vocabulary(texts: Iterable[str], most: int) -> tuple[str, ...]:
    """<pad>, <unk> and the ``most`` commonest words, the commonest first; ties by the alphabet."""
    counts = Counter(word for text in texts for word in split_words(text))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return (PAD, UNKNOWN, *ranked[:most])


def known_words(
    name: str,
    most: int,
    expected: Callable[[], Expected] | None,
    texts: Callable[[], Iterable[str]] | None,
) -> tuple[str, ...]:
    """The vocabulary that the teacher's file says; without one, that of the training texts.

    Args:
        name: of the data, for messages.
        most: words besides <pad> and <unk>.
        expected: by a teacher.
        texts: of the training split, read only where they are needed; None if there are none.

    Raises:
        ValueError: for a number out of range, a teacher's vocabulary of more words, and where
            there is neither.
    """
    if not 1 <= most <= MOST_WORDS - 2:
        raise ValueError(
            f"data.dataset.vocabulary is a number of words from 1 to {MOST_WORDS - 2}, not {most}"
        )
    theirs = expected().values.get("words", ()) if expected else ()
    if len(theirs) > most + 2:
        raise ValueError(
            f"the teacher knows {len(theirs) - 2} words, but data.dataset.vocabulary={most}: set "
            f"data.dataset.vocabulary={len(theirs) - 2}"
        )
    if theirs:
        return tuple(theirs)
    if texts is None:
        raise ValueError(
            f"data {name} has no training texts to take a vocabulary from: set data.path=..., or "
            "give a teacher.checkpoint=FILE that a run of ours wrote, which holds one"
        )
    return vocabulary(texts(), most)


def numbered(
    texts: Sequence[str], words: Sequence[str], length: int, where: str, runtime: Runtime
) -> NDArray[np.int16]:
    """The words' numbers [N, length]: longer texts are cut, shorter ones end in <pad>.

    Words out of the vocabulary are <unk>. A line says once how many are, and how many texts were
    cut.
    """
    places = {word: i for i, word in enumerate(words)}
    rows = np.zeros((len(texts), length), np.int16)
    total = unknown = cut = 0
    for row, text in zip(rows, texts, strict=True):
        found = split_words(text)
        cut += len(found) > length
        ids = [places.get(word, 1) for word in found[:length]]
        row[: len(ids)] = ids
        total, unknown = total + len(ids), unknown + ids.count(1)
    if unknown:
        line = f"{unknown:,} of {total:,} words are not in the vocabulary of {len(words):,}"
        note(runtime, f"data {where}: {line}, and become {UNKNOWN}")
    if cut:
        line = f"{cut:,} of {len(texts):,} texts are cut to {length} words"
        note(runtime, f"data {where}: {line} (data.dataset.length)")
    return rows
