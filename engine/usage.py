"""What `train.py --help` prints: the groups in short, or one group with a line on each choice."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import yaml

from engine.catalogue import comment, weight
from engine.choices import KEY, ROOT, files, groups
from engine.user_parts import user_folder

WIDTH = 100
HEAD = """Train a student, from a teacher alone or from data.

  python train.py                                   the main job, on embedded digits
  python train.py method=dafl data=mnist seed=1     another method and data set
  python train.py method=kd loss=[at,rkd]           transfer losses added to the method's own
  python train.py data=none teacher=NAME teacher.checkpoint=FILE student=NAME budget=10m
                                                    a teacher's file and no data at all
  torchrun --nproc-per-node=2 train.py              several processes

The same command continues an interrupted run.

Groups (group=choice; --help GROUP describes each choice):"""
TAIL = """
Set a key with key=value, such as steps=2000 or distiller.losses.kd.weight=2.

  --help GROUP   the choices of a group: {groups}
  --help keys    the keys of every run
  --show         print the composed configuration and stop

config_path=DIR adds your own choices to the groups: see docs/your-own-parts.md.

`python -X dev train.py` shows tracebacks."""


def usage(topics: Sequence[str] = ()) -> str:
    """The text.

    Args:
        topics: groups, or "keys"; none for the overview. With ``config_path=DIR`` among them, the
            choices in that folder are described too.

    Raises:
        ValueError: for a topic that does not exist, or mistakes in the folder.
    """
    mistakes: list[str] = []
    own = user_folder(topics, mistakes)
    if mistakes:
        raise ValueError("\n".join(mistakes))
    known = [*groups(), "keys"]
    topics = [topic for topic in topics if not topic.startswith(f"{KEY}=")]
    for topic in topics:
        if topic not in known:
            near = difflib.get_close_matches(topic, known, 1)
            meant = f"did you mean --help {near[0]}?" if near else f"there is: {', '.join(known)}"
            raise ValueError(f"--help {topic}: no such group; {meant}")
    if not topics:
        return overview(own)
    return "\n\n".join(common_keys() if topic == "keys" else group(topic, own) for topic in topics)


def overview(own: Path | None) -> str:
    lines = [HEAD]
    beside = groups(own)
    for name, choices in groups().items():
        listed = textwrap.wrap(" ".join(choices), WIDTH - 14, max_lines=2, placeholder=" ...")
        if yours := " ".join(c for c in beside[name] if c not in choices):
            listed += textwrap.wrap(f"yours: {yours}", WIDTH - 14)
        lines += [f"  {name if i == 0 else '':<11} {line}" for i, line in enumerate(listed)]
    return "\n".join([*lines, TAIL.format(groups=", ".join(groups()))])


def group(name: str, own: Path | None) -> str:
    """A line on each choice: what its file says at the top."""
    says = {path.stem: comment(path) for path in files(name, own)}
    for path in files(name, own) if name == "loss" else ():
        with suppress(AttributeError, KeyError, TypeError, ValueError):  # in a file of the user's
            weights = [weight(entry) for entry in yaml.safe_load(path.read_text()).values()]
            says[path.stem] = f"weight {' and '.join(weights)}; {comment(path)}"
    width = max(map(len, says))
    lines = [f"{name}=NAME" + (f" or {name}=[NAME,NAME]" if name == "loss" else "")]
    for choice, text in sorted(says.items()):
        short = textwrap.shorten(text, WIDTH - width - 4, placeholder=" ...")
        lines.append(f"  {choice:<{width}}  {short}")
    return "\n".join(lines)


def common_keys() -> str:
    """Those of configs/train.yaml, with their defaults and comments."""
    text = (ROOT / "train.yaml").read_text().splitlines()
    start = next(i for i, line in enumerate(text) if line.startswith("student:"))
    return "\n".join(["Keys of every run (--show prints those of the parts too):", *text[start:]])
