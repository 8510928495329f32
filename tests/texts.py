"""A small file of texts and labels."""

from __future__ import annotations

import csv
import functools
import random
import tempfile
from pathlib import Path

SUBJECTS = {
    "bank": ["account", "loan", "interest", "deposit"],
    "food": ["bread", "soup", "cheese", "rice"],
    "travel": ["train", "hotel", "flight", "luggage"],
}
FRAMES = ["tell me about my {}", "what is the {} today", "i need a {} please", "{} and more {}"]


def write_texts(folder: Path, rows: int = 90) -> Path:
    """A CSV file of sentences on three subjects, in a random order that is always the same."""
    drawn = random.Random(0)
    path = folder / "texts.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for i in range(rows):
            subject = list(SUBJECTS)[i % len(SUBJECTS)]
            words = [drawn.choice(SUBJECTS[subject]) for _ in range(2)]
            writer.writerow([drawn.choice(FRAMES).format(*words), subject])
    return path


@functools.cache
def texts() -> Path:
    """The same file, written once for all tests of this process."""
    folder = Path(tempfile.mkdtemp(prefix="texts-"))
    return write_texts(folder)
