"""The last inputs of a run as files: a picture, and what one can hear or read of them."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from torch import Tensor
from torchvision.utils import save_image

from core.files import write_whole
from data.spec import InputSpec
from engine.ownership import PICTURE, SOUND, TEXT, TEXT_MARK, make_way

LOUDEST = 32767  # of 16 bits


def write_inputs(folder: Path, inputs: Tensor, spec: InputSpec) -> None:
    """Write inputs [B, *shape] as ``inputs.png``, and as ``inputs.wav`` or ``inputs.txt`` if their
    modality has a sound, of a sample rate that is known, or a text."""
    save_image(spec.kind.picture(inputs, spec), png := BytesIO(), format="png")
    files = {PICTURE: png.getvalue()}
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
