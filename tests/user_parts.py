"""The folder that docs/your-own-parts.md writes, and what it leaves in a process undone."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.user_parts import modules_in

PAGE = Path(__file__).resolve().parents[1] / "docs" / "your-own-parts.md"


def written_parts(folder: Path, page: Path = PAGE) -> Path:
    """The page's files, to the letter, in this folder."""
    blocks = re.findall(r"`parts/(\S+)`:\n\n```\w+\n(.*?)```", page.read_text(), re.DOTALL)
    for name, text in blocks:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


@contextmanager
def forgotten(folder: Path) -> Iterator[Path]:
    """What this process learns of a folder's modules is gone afterwards."""
    path = [*sys.path]
    yield folder
    sys.path[:] = path
    for name in modules_in(folder) if folder.is_dir() else ():
        for module in [m for m in sys.modules if m.partition(".")[0] == name]:
            if str(folder.resolve()) in str(getattr(sys.modules[module], "__file__", "")):
                del sys.modules[module]
