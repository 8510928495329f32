"""Which losses are across modalities, and on which pairs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from core.runtime import Runtime
from distillers.response import soft_kl
from distillers.step import Edge, Ref
from engine.config import compose, plain
from engine.moments import provisional
from engine.parts import Parts, blank_teacher, build_dataset, build_parts
from models.pretrained import freeze

DIGITS = "{_target_: data.builtin.digits}"
BY_CLASS = [
    f"data.dataset={{_target_: data.paired.by_class, name: both, a: {DIGITS}, b: {DIGITS}}}",
    "teacher.transform=part_a",
    "student.transform=part_b",
    "source.augment=[]",
]
EDGES = ["student.transform=edges", "source.augment=[]"]
WIDTHS = ["teacher.model.width=4", "student.model.width=4"]
PEER = "students.peer={model: digits_cnn_small, transform: part_b}"


def parts_of(method: str, *overrides: str) -> Parts:
    """The parts of a run with an untrained teacher."""
    words = [f"method={method}", "batch_size=16", "device=cpu", *WIDTHS, *overrides]
    settings, runtime = plain(compose(words)), Runtime("cpu")
    dataset = build_dataset(settings, runtime)
    teacher = None
    if settings["needs_teacher"]:
        torch.manual_seed(7)
        teacher = freeze(blank_teacher(settings, dataset))
        runtime.prepare(teacher)
    settings = provisional(settings, dataset, teacher, runtime)
    return build_parts(settings, dataset, teacher, runtime)


def edge(parts: Parts, name: str) -> Edge:
    return parts.distiller.edges[name]


def test_pairs_are_as_given_by_default() -> None:
    parts = parts_of("kd", *EDGES)
    assert edge(parts, "kd") == Edge()
    assert parts.source.next().views == {}


def test_the_teacher_sees_the_pair_of_another_input_where_they_are_shuffled() -> None:
    parts = parts_of("kd", *EDGES, "shuffled_pairs=true")
    assert edge(parts, "kd") == Edge(teacher=Ref("teacher", "paired"))
    assert edge(parts, "cross_entropy") == Edge()
    batch = parts.source.next()
    losses = parts.distiller(batch)
    others = parts.source.split.batch(parts.source.others[batch.index])[0]  # type: ignore[attr-defined]
    student = parts.student(batch.input).logits
    expected = 0.9 * soft_kl(student, parts.teacher(others).logits, 4.0)  # type: ignore[misc]
    torch.testing.assert_close(losses.values["kd"], expected)
    hard = F.cross_entropy(student, batch.label)
    torch.testing.assert_close(losses.values["cross_entropy"], 0.1 * hard)


def test_pairs_by_class_are_drawn_anew_in_every_step() -> None:
    parts = parts_of("kd", *BY_CLASS, "source.limit=16")
    assert edge(parts, "kd") == Edge(teacher=Ref("teacher", "paired"))
    partners: dict[int, set[tuple[float, ...]]] = {}
    for _ in range(6):
        batch = parts.source.next()
        parts.distiller(batch)
        assert batch.label is not None
        split = parts.source.split  # type: ignore[attr-defined]
        rows, labels = split.batch(slice(0, len(split)))
        same = (rows[None] == batch.views["paired"][:, None]).all(dim=(2, 3))
        assert torch.equal(labels[same.float().argmax(1)], batch.label)  # of the same class
        for row, x in zip(batch.index.tolist(), batch.views["paired"], strict=True):  # type: ignore[union-attr]
            partners.setdefault(row, set()).add(tuple(x.flatten().tolist()))
    assert max(map(len, partners.values())) > 1


@pytest.mark.parametrize("loss", ["at", "fitnet", "rkd", "crd", "minilm"])
def test_losses_on_one_thing_are_refused_where_a_pair_is_of_two(loss: str) -> None:
    vit = ["teacher=vit_digits", "student=vit_digits"] if loss == "minilm" else WIDTHS
    words = [*BY_CLASS, f"loss={loss}"]
    settings = plain(compose(["method=kd", "batch_size=16", "device=cpu", *vit, *words]))
    runtime = Runtime("cpu")
    dataset = build_dataset(settings, runtime)
    teacher = runtime.prepare(freeze(blank_teacher(settings, dataset)))
    settings = provisional(settings, dataset, teacher, runtime)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=f"the loss {loss} compares .* share their class"
    ) as caught:
        build_parts(settings, dataset, teacher, runtime)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_losses_on_predictions_and_within_a_modality_are_not() -> None:
    own = "+distiller.losses.own={teacher: peer, loss: {_target_: distillers.attention."
    own += "AttentionTransfer}}"
    labels = "distiller.losses.cross_entropy.student=[student,peer]"
    parts = parts_of("kd", *BY_CLASS, "loss=[dkd,dist]", PEER, own, labels)
    assert {n for n, e in parts.distiller.edges.items() if e.teacher.view == "paired"} == {
        "kd",
        "dkd",
        "dist",
    }
    assert parts.distiller(parts.source.next()).total.isfinite()


def test_nothing_to_shuffle() -> None:
    with pytest.raises(ValueError, match="nothing to shuffle"):
        parts_of("kd", "shuffled_pairs=true")
    with pytest.raises(ValueError, match="needs real data"):
        parts_of("dfad", "student.transform=edges", "shuffled_pairs=true")


def test_losses_with_labels_are_computed_where_there_are_some() -> None:
    parts = parts_of("kd", *EDGES, "source.labels=20", "source.labelled=0.25", "loss=dkd")
    batch = parts.source.next()
    values = parts.distiller(batch).values
    assert batch.labelled == 4
    assert batch.label is not None
    student, teacher = parts.student(batch.input).logits, parts.teacher(batch.input).logits  # type: ignore[misc]
    expected = 0.1 * F.cross_entropy(student[:4], batch.label[:4])
    torch.testing.assert_close(values["cross_entropy"], expected)
    torch.testing.assert_close(values["kd"], 0.9 * soft_kl(student, teacher, 4.0))
    assert values["dkd"].isfinite()


def test_what_reads_every_label_is_refused_where_some_are_missing() -> None:
    memory = "teachers={memory: {_target_: distillers.memory.Memory}}"
    with pytest.raises(ValueError, match=r"teachers\.memory reads the label of every input"):
        parts_of("kd", memory, "distiller.losses.kd.teacher=memory", "source.labels=20")


def test_a_view_of_ones_own_cannot_have_its_name() -> None:
    view: dict[str, Any] = {"_target_": "distillers.attacks.PGD", "epsilon": 0.1}
    with pytest.raises(ValueError, match="'paired' has a meaning of its own"):
        parts_of("kd", f"views={{paired: {view}}}".replace("'", ""))
