"""Small runs of every scheme with more than one network, view or answer."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from core.runtime import Runtime
from engine.config import plain
from engine.parts import Parts, build_dataset, build_parts
from engine.teacher import networks_of
from models.checkpoint import save_network
from tests.test_contracts import others_for, small, teacher_for

FOURIER = "student.transform={_target_: data.transforms.FourierMagnitude}"
MOMENTS = ["student.mean=[0.24]", "student.std=[0.14]"]
SCHEMES: dict[str, tuple[str, ...]] = {
    "dml": (),
    "dml of two kinds": ("students.peer.model=digits_cnn",),
    "dml of three": (
        "students.third={model: digits_cnn_small}",
        "distiller.losses.cross_entropy.student=[student,peer,third]",
        "distiller.losses.mutual.student=[student,peer,third]",
    ),
    "one": ("students.second.model.widths=[6]", "students.third.model.widths=[6]"),
    "camkd": (),
    "camkd_features": (),
    "aver": (),
    "aver with features": (
        "loss=fitnet",
        "distiller.losses.fitnet.teacher=[teacher,second,third]",
        "teachers.second.model=digits_cnn",
        "teachers.third.model=vit_digits",
    ),
    "dgkd": ("teachers.second={model: digits_cnn_small}", "teachers.guides.of=[teacher,second]"),
    "pgd_at": (),
    "trades": (),
    "rslad": (),
    "iad": (),
    "cskd": (),
    "pskd": (),
    "mean_teacher": (),
    "meal": (),
    "kd": (FOURIER, *MOMENTS, "loss=at"),
}


def config_of(scheme: str, *overrides: str) -> DictConfig:
    return small(scheme.split()[0], *SCHEMES.get(scheme, ()), *overrides)


def parts_of(scheme: str, *overrides: str) -> Parts:
    """The parts of a run, with untrained teachers."""
    settings = plain(config_of(scheme, *overrides))
    runtime = Runtime("cpu", settings["precision"], settings["compile"])
    dataset = build_dataset(settings, runtime)
    teacher = teacher_for(settings, dataset) if settings["needs_teacher"] else None
    return build_parts(settings, dataset, teacher, runtime, others_for(settings, dataset))


def run_config(scheme: str, folder: Path, *overrides: str) -> DictConfig:
    """The configuration of a whole run whose teachers are in a file in the folder."""
    config = config_of(scheme, *overrides)
    settings = plain(config)
    file = folder / "teacher.safetensors"
    if settings["needs_teacher"]:
        if not file.exists():
            dataset = build_dataset(settings, Runtime("cpu"))
            save_network(file, teacher_for(settings, dataset), {})
        config.teacher.checkpoint = str(file)
    for name in networks_of(settings):
        node = config.teachers[name]
        node.model, node.checkpoint = config.teacher.model, str(file)  # one file serves them all
    return config
