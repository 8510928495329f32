"""The export formats. Each writes a network to bytes, and runs it from these bytes again."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from models.classifier import Classifier

BATCH = ({0: Dim("batch")},)


@dataclass(frozen=True)
class Format:
    """One way to write a network.

    Args:
        packages: beyond what every run needs.
        runner: what runs it, in words.
        write: a captured program and metadata to the content of a file.
        read: that content to a function of inputs [B, *shape] that returns logits [B, C].
    """

    packages: tuple[str, ...]
    runner: str
    write: Callable[[ExportedProgram, Mapping[str, str]], bytes]
    read: Callable[[bytes], Callable[[Tensor], Tensor]]

    def check(self) -> None:
        """Import the packages.

        Raises:
            ValueError: naming those that are missing.
        """
        missing = []
        for name in self.packages:
            try:
                importlib.import_module(name)
            except ImportError:
                missing.append(name)
        if missing:
            raise ValueError(
                f"{' and '.join(missing)} cannot be imported: run pip install -e '.[export]'"
            )


class Deployed(nn.Module):
    """Images in the value range of the student's specification to float32 logits [B, C]."""

    def __init__(self, student: Classifier) -> None:
        super().__init__()
        self.student = student

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.student(images).logits
        return logits


def capture(student: Classifier) -> ExportedProgram:
    """A frozen student with its normalisation as one program, for batches of any size.

    Raises:
        ValueError: if ``torch.export`` cannot follow the network.
    """
    images = torch.zeros(2, *student.takes.shape)
    student(images)  # caches its constants, which in a trace would hold no data
    name = type(student.module).__name__
    try:
        with _quiet():
            program = torch.export.export(Deployed(student), (images,), dynamic_shapes=BATCH)
    except Exception as error:  # a network may do anything
        if "batch" in str(error) and "specialized" in str(error):
            reason = "its code works for batches of one size only"
        else:
            reason = first_line(error)
        raise ValueError(f"{name} cannot be exported: torch.export says: {reason}") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names the folders of this machine
    return program


def _write_onnx(program: ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    try:
        with _quiet():
            exported = torch.onnx.export(
                program,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=BATCH,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        lacking = re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", str(error))
        reason = f"it has no operator for {lacking[1]}" if lacking else first_line(error)
        raise ValueError(f"cannot be exported to ONNX: {reason}. Export to .pt2 instead") from error
    assert exported is not None
    model = exported.model_proto
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    for node in [*model.graph.node, *(n for f in model.functions for n in f.node)]:
        node.ClearField("metadata_props")  # likewise
    if model.ByteSize() >= 2**31:
        raise ValueError("an ONNX file holds 2 GB at most, and this one is larger: export to .pt2")
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _read_onnx(content: bytes) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _write_pt2(program: ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    file = io.BytesIO()
    with _quiet():
        torch.export.save(program, file, extra_files=dict(metadata))
    return file.getvalue()


def _read_pt2(content: bytes) -> Callable[[Tensor], Tensor]:
    with _quiet():
        return torch.export.load(io.BytesIO(content)).module()


FORMATS = {
    ".onnx": Format(("onnx", "onnxscript", "onnxruntime"), "onnxruntime", _write_onnx, _read_onnx),
    ".pt2": Format((), "torch.export.load", _write_pt2, _read_pt2),
}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A context without the exporters' warnings about their internals, which no user can act on."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def first_line(error: Exception) -> str:
    """The first line of another package's error, or else its type."""
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
