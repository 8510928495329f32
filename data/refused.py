"""Which methods refuse a modality, as tests/test_modalities.py has tried and recorded."""

from __future__ import annotations

import functools
from pathlib import Path

import yaml

RECORD = Path(__file__).resolve().parents[1] / "docs" / "modalities.yaml"


@functools.cache
def refusing(modality: str) -> frozenset[str]:
    """The names of the methods that refuse inputs of a modality.

    None are known for images, which all of them take, and for a modality that is not recorded, such
    as one of the user's.
    """
    methods = yaml.safe_load(RECORD.read_text())["methods"] if RECORD.is_file() else {}
    if not any(modality in taken for taken in methods.values()):
        return frozenset()
    return frozenset(name for name, taken in methods.items() if modality not in taken)
