"""Which losses are across modalities, and on which pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from core.runtime import Runtime
from data.spec import InputSpec
from distillers.response import soft_kl
from distillers.step import Edge, Ref
from engine.config import compose, plain
from engine.moments import provisional
from engine.parts import Parts, build_dataset, build_parts
from engine.teacher_file import blank_teacher, load_teacher
from models.checkpoint import save_network
from models.classifier import Classifier
from models.digits import DigitsCNN
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


@pytest.mark.parametrize("loss", ["loss=[hsakd,ce]", "loss=[sarc,ce]"])
def test_losses_that_ask_both_networks_themselves_cannot_be_shuffled(loss: str) -> None:
    words = [*EDGES, loss, "~distiller.losses.kd", "~distiller.losses.cross_entropy"]
    parts_of("kd", *words)
    with pytest.raises(ValueError, match=r"shuffled_pairs=true would leave the loss \w+ some true"):
        parts_of("kd", *words, "shuffled_pairs=true")


ASKS = {
    "labels": ["distiller.labels=teacher"],
    "view": [
        "views={attacked: {_target_: distillers.attacks.PGD, epsilon: 0.1, maximise: kl}}",
        "distiller.losses.kd.student=student@attacked",
    ],
    "memory": [
        "students.peer={model: digits_cnn_small}",
        "distiller.losses.cross_entropy.student=[student,peer]",
        "teachers.memory={_target_: distillers.memory.Memory, of: peer}",
        "distiller.losses.kd.teacher=memory",
    ],
    "member": [
        "views={again: {_target_: distillers.attacks.PGD, epsilon: 0.1}}",
        "teachers.mix={_target_: distillers.combinations.Mean, of: [teacher@again]}",
        "distiller.losses.kd.teacher=mix",
    ],
}


@pytest.mark.parametrize("how", ASKS)
def test_no_true_pair_is_left_where_pairs_are_shuffled(how: str) -> None:
    parts_of("kd", *EDGES, *ASKS[how])
    with pytest.raises(ValueError, match="shuffled_pairs=true"):
        parts_of("kd", *EDGES, *ASKS[how], "shuffled_pairs=true")


def test_a_teacher_within_another_that_compares_one_thing_is_refused_where_a_pair_is_of_two() -> (
    None
):
    mix = "teachers.mix={_target_: distillers.combinations.Mean, of: [general, teacher]}"
    words = ["~distiller.losses.align", mix, "distiller.losses.kd.teacher=mix"]
    with pytest.raises(ValueError, match=r"the loss kd compares .* share their class"):
        parts_of("mfh", *BY_CLASS, *words)


def test_a_contrast_of_classes_needs_no_more_than_the_class() -> None:
    parts = parts_of("kd", *BY_CLASS, "loss=supcon")
    assert edge(parts, "supcon").teacher == Ref("teacher", "paired")
    assert parts.distiller(parts.source.next()).values["supcon"] > 0


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


ATTENTION = [("at", "edges"), ("at", "fourier"), ("cankd", "fourier"), ("minilm", "edges")]


@pytest.mark.parametrize(("loss", "transform"), ATTENTION)
def test_attention_is_compared_across_modalities(loss: str, transform: str) -> None:
    """With real data and without; ViTs need as many tokens on both sides."""
    vit = ["teacher=vit_digits", "student=vit_digits", "student.model.embed_dim=32"]
    words = [*(vit if loss == "minilm" else WIDTHS), f"loss={loss}", "batch_size=16", "device=cpu"]
    for method in ("kd", "dfad"):
        more = ["generator.channels=8"] if method == "dfad" else []
        chosen = [f"method={method}", f"student.transform={transform}", *words, *more]
        settings, runtime = plain(compose(chosen)), Runtime("cpu")
        dataset = build_dataset(settings, runtime)
        teacher = runtime.prepare(freeze(blank_teacher(settings, dataset)))
        settings = provisional(settings, dataset, teacher, runtime)  # type: ignore[arg-type]
        parts = build_parts(settings, dataset, teacher, runtime)  # type: ignore[arg-type]
        losses = parts.distiller(parts.source.next())
        assert losses.values[loss] > 0
        losses.total.backward()
        gradients = [p.grad for p in parts.student.parameters() if p.grad is not None]
        assert all(g.isfinite().all() for g in gradients)
        assert any(g.any() for g in gradients)
        assert (parts.counts()["real_training_inputs_read"] == 0) == (method == "dfad")


def test_at_joins_the_two_inputs_of_a_pair(tmp_path: Path) -> None:
    """Maps over an image, and over the line of a signal."""
    draw = np.random.default_rng(0)
    found = {"a": draw.integers(0, 256, (32, 8, 8), dtype=np.uint8)}
    found["b"] = draw.integers(-9999, 9999, (32, 512), dtype=np.int16)
    named = {f"{w}_inputs_{p}": x for p, x in found.items() for w in ("train", "test")}
    labels = np.arange(32) % 3
    np.savez(tmp_path / "x.npz", **named, train_labels=labels, test_labels=labels)
    pair = ["teacher=digits_cnn", "student=m5_tiny", f"data.path={tmp_path / 'x.npz'}"]
    words = ["data=npz_pairs", "method=kd", "loss=at", "batch_size=8", "device=cpu", *pair]
    settings, runtime = plain(compose(words)), Runtime("cpu")
    dataset = build_dataset(settings, runtime)
    teacher = runtime.prepare(freeze(blank_teacher(settings, dataset)))
    settings = provisional(settings, dataset, teacher, runtime)  # type: ignore[arg-type]
    parts = build_parts(settings, dataset, teacher, runtime)  # type: ignore[arg-type]
    assert parts.student.spec.modality == "signal"
    assert parts.distiller(parts.source.next()).values["at"] > 0


def test_a_generator_is_reached_through_the_students_transform() -> None:
    """So that a student of edges is trained without data, by inputs that its teacher knows."""
    parts = parts_of("dfad", "student.transform=edges", "generator.channels=8")
    source: Any = parts.source
    x = torch.rand(4, 1, 8, 8, requires_grad=True)
    student = parts.student.frozen()
    (student(x).logits - parts.teacher(x).logits.detach()).abs().mean().backward()  # type: ignore[misc]
    assert x.grad is not None
    assert x.grad.any()
    before = [p.detach().clone() for p in source.synthesizer.generator.parameters()]
    source.next()
    after = source.synthesizer.generator.parameters()
    assert any(not torch.equal(p, q) for p, q in zip(before, after, strict=True))


@pytest.mark.parametrize("limits", [(0.0, 255.0), (0.0, 1.0)])
def test_a_teachers_file_fits_what_its_transform_gives(
    limits: tuple[float, float], tmp_path: Path
) -> None:
    spec = InputSpec((1, 8, 8), limits, (limits[1] / 2,), (limits[1] / 4,))
    names = [str(i) for i in range(10)]
    save_network(tmp_path / "t.safetensors", Classifier(DigitsCNN(1, 10, 4), spec, names), {})
    file = str(tmp_path / "t.safetensors")
    config = plain(compose(["method=kd", "device=cpu", *WIDTHS, *BY_CLASS]))
    dataset = build_dataset(config, Runtime("cpu"))
    if limits == (0.0, 1.0):
        assert load_teacher(config, file, dataset, Runtime("cpu")).spec == spec
        return
    with pytest.raises(ValueError, match=r"values in \[0\.0, 255\.0\], but the teacher is shown"):
        load_teacher(config, file, dataset, Runtime("cpu"))
