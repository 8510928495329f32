"""The last inputs of a run as files: a picture, and what one can hear or read of them."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor
from torchvision.utils import save_image

from core.files import write_whole
from data.spec import InputSpec
from engine.ownership import PICTURE, SEEN, SOUND, TEXT, TEXT_MARK, make_way
from models.classifier import Classifier

LOUDEST = 32767  # of 16 bits


def write_inputs(folder: Path, inputs: Tensor, student: Classifier) -> None:
    """Write inputs [B, *shape] as ``inputs.png``, and as ``inputs.wav`` or ``inputs.txt`` if their
    modality has a sound, of a sample rate that is known, or a text; and what the student sees of
    them through a transform as ``inputs_student.png``."""
    spec = student.takes
    names = {"inputs": PICTURE, "inputs_student": SEEN}
    files = {names[name]: _picture(*view) for name, view in views_of(student, inputs).items()}
    sound = spec.kind.sound(inputs, spec)
    if sound is not None and spec.rate is not None:
        from scipy.io import wavfile  # slow to import

        samples = (sound[0].detach().float().cpu() * LOUDEST).round().short().numpy()
        wavfile.write(wav := BytesIO(), round(spec.rate), samples)
        files[SOUND] = wav.getvalue()
    if (text := spec.kind.text(inputs, spec)) is not None:
        files[TEXT] = f"{TEXT_MARK}\n\n{text}\n".encode()
    for name, content in files.items():
        make_way(folder / name)
        write_whole(folder / name, content)


def views_of(student: Classifier, inputs: Tensor) -> dict[str, tuple[Tensor, InputSpec]]:
    """Inputs as they are, ``inputs``, and as the student sees them through a transform, if it has
    one, ``inputs_student``; each with what describes it."""
    found = {"inputs": (inputs, student.takes)}
    if student.transform is not None:
        device = next(student.parameters()).device
        with torch.no_grad():
            found["inputs_student"] = student.transform(inputs.to(device)), student.spec
    return found


def _picture(inputs: Tensor, spec: InputSpec) -> bytes:
    save_image(spec.kind.picture(inputs, spec), png := BytesIO(), format="png")
    return png.getvalue()
