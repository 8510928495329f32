"""Which methods a plan names."""

from __future__ import annotations

from torch import nn

from core.runtime import Runtime
from engine.config import compose, plain
from engine.parts import blank_teacher, build_dataset, offered
from engine.plan import methods_for
from models.classifier import Classifier
from models.pretrained import freeze


def test_methods_that_do_not_fit_are_named_with_the_reason() -> None:
    """By what they read of the teacher to synthesize, and of both networks to transfer."""
    settings, runtime = plain(compose(["teacher=lenet5", "data.size=32"])), Runtime("cpu")
    dataset = build_dataset(settings, runtime)
    teacher = freeze(blank_teacher(settings, dataset))
    assert isinstance(teacher, Classifier)
    stageless = nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))
    student = Classifier(stageless, teacher.spec, teacher.classes)
    available = offered(settings, dataset, teacher, runtime) | {"student": student}
    fit, unfit = methods_for(teacher, settings["generator"], available)
    assert {"dfad", "dfme", "zskd"} <= set(fit)
    assert "reverie" in unfit["it inverts BatchNorm statistics, and the teacher has none"]
    assert any("zskt" in names and "stage1" in why for why, names in unfit.items())
