"""The autoencoder that remembers: its loss by definition, and that it learns to reconstruct."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from core.runtime import Runtime
from generators.networks import StandardGenerator
from generators.replay import VAE
from tests.generators.small import CLASSES, SPEC, same, snapshot, teacher

ADAM = functools.partial(torch.optim.Adam, lr=5e-3)


def vae(runtime: Runtime | None = None, conditional: bool = False, **kwargs: Any) -> VAE:
    torch.manual_seed(3)
    decoder = StandardGenerator(SPEC, CLASSES, latent_size=6, channels=8, conditional=conditional)
    runtime = runtime or Runtime(device="cpu")
    settings = {"fraction": 0.3, "channels": 8, **kwargs}
    return VAE(decoder, teacher(), SPEC, CLASSES, runtime, ADAM, **settings)


def patterns(count: int = 32) -> Tensor:
    """Images of a few shapes, which take more than one number to tell apart."""
    noise = torch.Generator().manual_seed(0)
    shapes = (torch.rand(5, *SPEC.shape, generator=noise) > 0.5).float()
    return shapes[torch.randint(5, (count,), generator=noise)]


@pytest.mark.parametrize("conditional", [False, True])
def test_the_autoencoder_learns_to_reconstruct(conditional: bool) -> None:
    part, images = vae(conditional=conditional), patterns()
    losses = []
    for step in range(250):
        part.follow(images, torch.Generator().manual_seed(step))
        losses.append(part.losses["replay"].item())
    assert losses[-1] < 0.5 * losses[0]
    with torch.no_grad():
        mean, _ = part.encoder(images)
        label = part.teacher(images).logits.argmax(1) if conditional else None
        rebuilt = part.decoder(mean, label)
    constant = images.median(0, keepdim=True).values  # the best guess that ignores the input
    assert (rebuilt - images).abs().mean() < 0.5 * (constant - images).abs().mean()


def test_the_autoencoder_keeps_the_teachers_logits() -> None:
    """Its loss by definition, on images of its own and the others."""
    part, images = vae(kl_weight=0.1), patterns(7)
    seen = []
    part.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    before = snapshot(part.encoder), snapshot(part.decoder)
    part.follow(images, torch.Generator().manual_seed(1))
    reference = vae(kl_weight=0.1)
    assert same(snapshot(reference.encoder), before[0])
    assert same(snapshot(reference.decoder), before[1])
    noise = torch.Generator().manual_seed(1)
    earlier = reference.draw(2, noise).input
    x = torch.cat([images, earlier])
    assert torch.equal(seen[0], x)
    with torch.no_grad():
        mean, log_variance = reference.encoder(x)
        eps = torch.randn(mean.shape, generator=noise)
        rebuilt = reference.decoder(mean + log_variance.exp().sqrt() * eps)
        pixels = (rebuilt - x).abs().mean() / SPEC.std[0]
        t = teacher()
        logits = (t(rebuilt).logits - t(x).logits).abs().mean()
        gaussian = torch.distributions.Normal(mean, log_variance.exp().sqrt())
        standard = torch.distributions.Normal(0.0, 1.0)
        prior = torch.distributions.kl_divergence(gaussian, standard).sum(1).mean()
    torch.testing.assert_close(part.losses["replay"], pixels + logits + 0.1 * prior)


def test_the_teacher_names_the_classes_of_a_conditional_autoencoder() -> None:
    part, images = vae(conditional=True), patterns()
    seen = []
    part.decoder.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    with torch.no_grad():  # so that there is more than one class
        bias = part.teacher.module.head.bias
        bias.copy_(-teacher()(images).logits.mean(0) + bias)
    part.follow(images, torch.Generator())
    drawn, named = seen
    expected = part.teacher(images).logits.argmax(1)
    assert len(expected.unique()) > 1
    assert torch.equal(named[: len(images)], expected)
    assert len(named) == len(images) + len(drawn)


def test_all_of_the_autoencoder_is_trained_and_averaged_over_ranks() -> None:
    averaged: list[Tensor] = []
    runtime = Runtime(device="cpu")
    runtime.average = lambda tensors: averaged.extend(tensors)  # type: ignore[method-assign]
    part = vae(runtime, updates=2)
    before = [p.detach().clone() for p in part.parameters]
    assert len(before) == sum(1 for m in (part.encoder, part.decoder) for _ in m.parameters())
    part.follow(patterns(8), torch.Generator().manual_seed(0))
    assert not any(torch.equal(a, b) for a, b in zip(before, part.parameters, strict=True))
    assert [g.shape for g in averaged] == 2 * [p.shape for p in part.parameters]
