"""Losses and teachers across modalities, against brute force, and whom they reach."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import kendalltau
from torch import Tensor

from core.runtime import Runtime
from data.spec import Batch
from distillers.base import Side
from distillers.crd import CRD
from distillers.general_channels import GeneralChannels
from distillers.hallucination import Hallucination
from distillers.nontarget import BLOCK, NonTargetKL, kendall
from engine.config import plain
from engine.moments import provisional
from engine.parts import Parts, build_dataset, build_parts
from models.branch import Proxy
from models.classifier import Outputs
from tests.test_contracts import small, teacher_for

EDGES = ["student.transform=edges", "source.augment=[]"]
NO_LABEL = torch.zeros(0)


def parts_of(method: str, *overrides: str) -> Parts:
    settings, runtime = plain(small(method, *EDGES, *overrides)), Runtime("cpu")
    dataset = build_dataset(settings, runtime)
    teacher = teacher_for(settings, dataset) if settings["needs_teacher"] else None
    settings = provisional(settings, dataset, teacher, runtime)
    return build_parts(settings, dataset, teacher, runtime)


def batch_of(x: Tensor, label: Tensor | None = None) -> Batch:
    return Batch(x, label)


@pytest.mark.parametrize("classes", [2, 5, BLOCK + 3])
def test_kendalls_tau_is_scipys_with_ties_too(classes: int) -> None:
    a = torch.randn(8, classes)
    b = a + torch.randn(8, classes)
    b[:4], a[2:6] = b[:4].round(), a[2:6].round()  # ties in either, and in both
    expected = [kendalltau(x, y).statistic for x, y in zip(a.numpy(), b.numpy(), strict=True)]
    found = kendall(a, b)
    for one, other in zip(found.tolist(), expected, strict=True):
        assert one == pytest.approx(0.0 if other != other else other, abs=1e-6)
    assert kendall(torch.zeros(1, 4), torch.randn(1, 4)).item() == 0  # where scipy has nan


def test_non_targets_are_compared_where_the_order_agrees() -> None:
    s, t = torch.randn(9, 6, requires_grad=True), torch.randn(9, 6)
    label = torch.arange(9) % 6
    value = NonTargetKL()(Outputs(s), Outputs(t), batch_of(NO_LABEL, label))
    kept = []
    for a, b, y in zip(s.detach(), t, label, strict=True):
        a, b = a.clone(), b.clone()
        if kendalltau(a, b).statistic > 0:
            a[y] = b[y] = 0  # and not minus infinity
            p, q = a.softmax(0), b.softmax(0)
            kept.append((q * (q / p).log()).sum())
    assert 0 < len(kept) < 9
    torch.testing.assert_close(value, torch.stack(kept).sum() / 9)
    value.backward()
    assert s.grad is not None
    assert s.grad.gather(1, label[:, None]).eq(0).all()  # the label's logit learns nothing
    assert int((s.grad.abs().sum(1) > 0).sum()) == len(kept)


def test_a_batch_of_which_nothing_remains_has_loss_zero() -> None:
    s = torch.randn(4, 5, requires_grad=True)
    value = NonTargetKL()(Outputs(s), Outputs(-s.detach()), batch_of(NO_LABEL, torch.arange(4)))
    value.backward()
    assert value.item() == 0
    assert s.grad is not None
    assert not s.grad.any()
    with pytest.raises(ValueError, match="least"):
        NonTargetKL(1.0)


def test_hallucination_sums_over_a_feature_and_averages_over_the_batch() -> None:
    s, t = torch.randn(3, 4, 2, 2, dtype=torch.float64), torch.randn(3, 4, 2, 2).double()
    answers = [Outputs(torch.zeros(3, 2), {"stage1": x}) for x in (s, t)]
    loss = Hallucination(["stage1"])
    loss.prepare(*map(Side, answers))
    expected = sum(
        (1 / (1 + (-a).exp()) - 1 / (1 + (-b).exp())) ** 2
        for a, b in zip(s.flatten(), t.flatten(), strict=True)
    )
    found = loss(*answers, batch_of(NO_LABEL))
    torch.testing.assert_close(found, expected / 3)
    wider = Outputs(torch.zeros(3, 2), {"stage1": torch.randn(3, 6, 4, 4)})
    loss = Hallucination(["stage1"])
    loss.prepare(Side(Outputs(torch.zeros(3, 2), {"stage1": s.float()})), Side(wider))
    assert [tuple(p.shape) for p in loss.parameters()] == [(6, 4, 1, 1)]


def test_crd_of_inputs_tells_each_from_all_others_without_a_label() -> None:
    parts = parts_of("crd_crossmodal", "source.labels=20")
    loss = parts.distiller.objective.losses["crd"].loss
    assert isinstance(loss, CRD)
    [contrast] = loss.contrasts
    batch = parts.source.next()
    assert batch.index is not None
    memory = copy.deepcopy(contrast.memory)
    value = parts.distiller(batch).values["crd"]
    features = [
        parts.student(batch.input).features["pooled"],
        parts.distiller.teacher(batch.input).features["pooled"],  # type: ignore[misc]
    ]
    expected = torch.zeros(())
    k = loss.negatives
    for i, (head, x) in enumerate(zip(contrast.heads, features, strict=True)):
        z = F.normalize(head(x), dim=1)
        entries = contrast.memory.embeddings[i]  # of the other network, with this batch written
        even = contrast.log_mean[i] + torch.tensor(float(k)).log()
        for row, own in zip(z, batch.index.tolist(), strict=True):
            near = row @ memory.embeddings[i][own] / loss.temperature
            others = [m for m in range(len(entries)) if m != own]
            far = entries[others] @ row / loss.temperature
            one = F.logsigmoid(near - even) + k * F.logsigmoid(even - far).mean()
            expected = expected - one / len(z)
    torch.testing.assert_close(value, 0.8 * expected, rtol=1e-4, atol=1e-3)
    with pytest.raises(ValueError, match=r"tells inputs apart by batch\.index"):
        parts.distiller(Batch(batch.input))


def test_a_channels_salience_is_the_distance_with_it_permuted() -> None:
    parts = parts_of("mfh", "teachers.general.permutations=2", "teachers.general.keep=0.5")
    general = parts.distiller.roles.teachers["general"]
    assert isinstance(general, GeneralChannels)
    batch = parts.source.next()
    noise = Runtime("cpu").noise("teacher channels", 0)
    orders = [torch.rand(8, generator=noise).argsort() for _ in range(2)]
    parts.distiller(batch)
    teacher = parts.distiller.teacher
    student = parts.networks["labelled"](batch.input).logits.detach()
    assert teacher is not None
    feature = teacher(batch.input).features["pooled"]
    head = teacher.module.get_submodule(teacher.module.taps["logits"])  # type: ignore[index,arg-type]
    expected = torch.zeros(feature.shape[1])
    for channel, order in itertools.product(range(feature.shape[1]), orders):
        moved = feature.clone()
        moved[:, channel] = moved[order, channel]
        expected[channel] += (head(moved) - student).abs().mean() / 2
    torch.testing.assert_close(general.salience, expected)
    kept = expected.topk(len(expected) // 2).indices
    mask = torch.zeros(len(expected)).index_fill(0, kept, 1)
    parts.distiller.at(0.6)  # the second half: what was measured stays
    losses = parts.distiller(batch)
    torch.testing.assert_close(general.salience, expected)
    answer = F.softmax(head(feature * mask), dim=1)
    student = F.log_softmax(parts.student(batch.input).logits, dim=1)
    torch.testing.assert_close(
        losses.values["kd"], F.kl_div(student, answer, reduction="batchmean")
    )
    assert losses.values["cross_entropy"] == losses.values["align"] == 0


def test_mistakes_of_mfh() -> None:
    with pytest.raises(ValueError, match="keep and until"):
        parts_of("mfh", "teachers.general.keep=0.0")
    with pytest.raises(ValueError, match=r"no tap 'pooled'|linear layer on its pooled"):
        parts_of("mfh", "teacher=lenet5", "~teacher.model.width", "data.size=32")


@pytest.mark.parametrize("shape", [(5,), (7, 5), (5, 3, 2)])
def test_a_proxy_has_two_layers_on_the_average_over_places(shape: tuple[int, ...]) -> None:
    proxy = Proxy(shape[0], 4, shape[1:])
    x = torch.randn(6, *shape)
    mean = x if len(shape) == 1 else x.mean(1) if len(shape) == 2 else x.mean((2, 3))
    first = mean @ proxy.layer.weight.T
    normal = (first - first.mean(0)) / (first.var(0, correction=0) + 1e-5).sqrt()
    expected = proxy.linear(torch.where(normal > 0, normal, 0.1 * normal))
    torch.testing.assert_close(proxy(x), expected)
    assert proxy.layer.bias is None


def test_a_proxy_stands_on_the_stage_before_the_last() -> None:
    parts = parts_of("c2kd")
    assert parts.distiller.roles.branches == {
        "proxy": ("student", "stage1"),
        "peer_proxy": ("peer", "stage1"),
    }
    with pytest.raises(ValueError, match=r"no tap 'stage-3': the peer's stages are stage1, stage2"):
        parts_of("c2kd", "students.peer_proxy.tap=stage-3")


def test_a_teacher_is_not_asked_while_nobody_learns_from_it() -> None:
    parts = parts_of("supervision_transfer")
    for progress, asked in ((0.0, True), (0.75, False)):
        before = parts.teacher.meter.queries  # type: ignore[union-attr]
        parts.distiller.at(progress)
        parts.distiller(parts.source.next())
        assert (parts.teacher.meter.queries > before) == asked  # type: ignore[union-attr]


# Of each loss: who learns, from whom. A proxy's loss reaches the network that it stands on.
LEARNS = {
    "supervision_transfer": {"transfer": {"student"}},
    "soft_labels": {"kd": {"student"}},
    "hallucination": {"kd": {"student"}, "hallucination": {"student"}},
    "mutual_crossmodal": {"mutual_student": {"student"}, "mutual_peer": {"peer"}},
    "mutual_ensemble": {
        "predicted_student": {"student"},
        "predicted_peer": {"peer"},
        "mutual_student": {"student"},
        "mutual_peer": {"peer"},
    },
    "crd_crossmodal": {"crd": {"student"}},
    "mfh": {"align": {"labelled"}, "cross_entropy": {"labelled"}, "kd": {"student"}},
    "c2kd": {
        "to_proxy": {"student", "proxy"},
        "from_proxy": {"student"},
        "to_peer_proxy": {"peer", "peer_proxy"},
        "from_peer_proxy": {"peer"},
        "across": {"student", "proxy"},
        "back": {"peer", "peer_proxy"},
    },
}
OWN = {"proxy": "module.branch.", "peer_proxy": "module.branch."}  # and not of the trunk


@pytest.mark.parametrize("method", LEARNS)
def test_each_loss_reaches_those_who_learn_from_it(method: str) -> None:
    parts = parts_of(method)
    for name, learn in LEARNS[method].items():
        for other, weighted in parts.distiller.objective.losses.items():
            weighted.schedule, weighted.weight = None, float(other == name)
            if isinstance(weighted.loss, NonTargetKL):
                weighted.loss.least = -2.0  # untrained networks rank all inputs' classes alike
        parts.distiller.zero_grad()
        parts.distiller(parts.source.next()).total.backward()
        moved = {
            network
            for network, student in parts.distiller.roles.students.items()
            for key, p in student.named_parameters()
            if key.startswith(OWN.get(network, "module.")) and p.grad is not None and p.grad.any()
        }
        assert moved == learn, name
    if parts.teacher is not None:
        assert all(p.grad is None for p in parts.teacher.parameters())


def test_c2kd_is_the_sum_of_its_paper() -> None:
    """L_S = CE + KL(s → p) + KL(p → s) + NTKL, and the same of the other network."""
    parts = parts_of("c2kd")
    batch = parts.source.next()
    values = parts.distiller(batch).values
    names = ("student", "proxy", "peer", "peer_proxy")
    s, p, t, q = (parts.networks[name].train()(batch.input) for name in names)
    kl = lambda a, b: F.kl_div(a.logits.log_softmax(1), b.logits.softmax(1), reduction="batchmean")  # noqa: E731
    nontarget = NonTargetKL()
    expected = {
        "cross_entropy_student": F.cross_entropy(s.logits, batch.label),
        "cross_entropy_peer": F.cross_entropy(t.logits, batch.label),
        "to_proxy": kl(p, s),
        "from_proxy": kl(s, p),
        "to_peer_proxy": kl(q, t),
        "from_peer_proxy": kl(t, q),
        "across": nontarget(p, q, batch),
        "back": nontarget(q, p, batch),
    }
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(values[name], value, msg=name)
