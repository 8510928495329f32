"""A trained generator: settings and teachers that do not fit, bf16, and compiled networks."""

import pytest
import torch
from torch import nn

from core.runtime import Runtime
from data.augment import RandomAffine
from data.spec import InputSpec
from generators.losses import Adversarial, OneHot
from generators.observer import check_statistics
from models.classifier import Classifier
from tests.generators.small import SPEC, generative, objective, teacher


class EagerRuntime(Runtime):
    """Traces with torch.compile but leaves out code generation, which takes long."""

    def compile(self, module: nn.Module) -> nn.Module:
        module.compile(backend="eager", fullgraph=False)
        return module


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reuse": True, "student_steps": 1, "size": 5}, "size of at least 6"),
        ({"student_steps": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"size": 0}, "at least 1"),
        ({"updates": 0}, "at least 1"),
    ],
)
def test_settings_that_do_not_fit(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generative(**options)


def test_teacher_without_batchnorm() -> None:
    bare = teacher(norm=False)
    with pytest.raises(ValueError, match=r"no BatchNorm layers.*dafl, zskt, dfad.*psaq_vit"):
        generative(teacher=bare)
    without = objective(one_hot=OneHot(), adversarial=Adversarial())
    check_statistics(bare, without)
    assert generative(teacher=bare, objective=without).next().input.isfinite().all()


def test_methods_that_refuse_texts_are_not_proposed_for_them() -> None:
    spec = InputSpec((4, 5), modality="text", words=("<pad>", "<unk>", "a", "b"))
    bare = Classifier(nn.Flatten(), spec)
    with pytest.raises(ValueError, match=r"without: dafl, zskt, dfad, zskd, psaq_vit$"):
        check_statistics(bare, generative().synthesizer.observe.objective)


def test_an_update_may_see_the_student_by_batch() -> None:
    source, usual = generative(student_by_batch=True), generative()
    assert not source.synthesizer.observe.student.batchnorms()
    assert usual.synthesizer.observe.student.batchnorms()
    assert source.synthesizer.observe.teacher.batchnorms()
    source.next(), usual.next()
    assert source.report()["adversarial"] != usual.report()["adversarial"]


def test_bf16_runs() -> None:
    """Failure 7: a mixed-precision flag that nothing ever ran."""
    source = generative(Runtime(device="cpu", precision="bf16"))
    computed = set()
    networks = (
        source.synthesizer.generator.stages[-1],
        source.synthesizer.observe.teacher.module.conv1,
    )
    for layer in networks:
        layer.register_forward_hook(lambda layer, args, y: computed.add((layer, y.dtype)))
    for _ in range(3):
        batch = source.next()
    assert computed == {(layer, torch.bfloat16) for layer in networks}
    assert batch.input.dtype == torch.float32
    for value in source.report().values():
        assert torch.as_tensor(value).isfinite()
    assert all(v.dtype == torch.float32 for k, v in source.synthesizer.losses.items())


def test_hooks_fire_in_compiled_networks() -> None:
    """Failure 12: taps and statistics of a compiled teacher, first call and later ones."""
    plain, compiled = generative(), generative(EagerRuntime(device="cpu"))
    for _ in range(4):
        a, b = plain.next(), compiled.next()
        torch.testing.assert_close(a.input, b.input)
    torch.testing.assert_close(plain.synthesizer.losses, compiled.synthesizer.losses)
    assert compiled.synthesizer.observe.teacher.module._compiled_call_impl is not None


def test_reused_images_bring_the_teachers_answers() -> None:
    """To the bit, and only where the teacher saw exactly what the student gets."""
    options = {"student_steps": 1, "size": 6, "reuse": True}
    source = generative(**options)
    for _ in range(2):
        batch = source.next()
        assert batch.teacher_logits is not None
        assert torch.equal(batch.teacher_logits, teacher()(batch.input).logits)
        assert not batch.teacher_logits.requires_grad
    turned = [RandomAffine(SPEC, 20.0)]
    for changed in ({"views": turned}, {"augment": turned}):
        assert generative(**options, **changed).next().teacher_logits is None
    assert generative(student_steps=1).next().teacher_logits is None


def test_reuse_is_for_the_first_batch_after_an_update() -> None:
    seen = []
    source = generative(student_steps=3, size=6, reuse=True)
    source.synthesizer.observe.teacher.register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    batches = [source.next() for _ in range(6)]
    assert [b.teacher_logits is not None for b in batches] == [True, False, False] * 2
    assert torch.equal(batches[0].input, seen[0])
    assert torch.equal(batches[3].input, seen[1])
    assert source.counts()["images_synthesized"] == 6 * 6
    assert len({b.input.sum().item() for b in batches}) == 6
