"""Losses on the latent, the ensemble that shares a batch, and the training of a loss's decoder."""

import functools
import io
import math

import pytest
import torch
from torch import Tensor

from core.objective import Objective, Weighted
from core.runtime import Runtime
from data.spec import InputSpec
from generators.base import Synthesis
from generators.latent import LatentDiversity, LatentNorm, LatentReconstruction
from generators.losses import OneHot
from generators.networks import GeneratorEnsemble, StandardGenerator
from models.classifier import Outputs
from tests.generators.small import CLASSES, SPEC, generative, objective, snapshot

TERMS = (lambda: LatentReconstruction(SPEC, 5), lambda: LatentDiversity(SPEC), LatentNorm)


def synthesis(images: Tensor, latent: Tensor | None) -> Synthesis:
    return Synthesis(images, Outputs(torch.zeros(len(images), 1)), latent=latent)


def random(*shape: int, seed: int = 0) -> Tensor:
    noise = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=noise, dtype=torch.float64)


def ensemble(members: int = 3, **kwargs: object) -> GeneratorEnsemble:
    torch.manual_seed(4)
    settings = {"latent_size": 5, "channels": 8, "conditional": True, **kwargs}
    return GeneratorEnsemble(SPEC, CLASSES, members, **settings)  # type: ignore[arg-type]


def test_diversity_is_what_it_says_of_all_pairs() -> None:
    spec = InputSpec((2, 3, 4), (0.0, 1.0), (0.5, 0.2), (0.5, 0.1))
    x, z = random(6, 2, 3, 4), random(6, 7, seed=1)
    pairs = []
    for i in range(6):
        for j in range(6):
            a, b = (spec.normalize(x[k : k + 1]) for k in (i, j))
            pairs.append(((z[i] - z[j]) ** 2).mean() * (a - b).abs().mean())
    expected = math.exp(-torch.stack(pairs).mean())
    assert LatentDiversity(spec)(synthesis(x, z)).item() == pytest.approx(expected)
    alike = x[:1].expand(6, -1, -1, -1)
    assert LatentDiversity(spec)(synthesis(alike, z)).item() == pytest.approx(1.0)


def test_diversity_drives_inputs_apart() -> None:
    spec = InputSpec((2, 3, 4), (0.0, 1.0), (0.5, 0.2), (0.5, 0.1))
    x, z = random(4, 2, 3, 4).requires_grad_(), random(4, 3, seed=1).requires_grad_()
    loss = LatentDiversity(spec)
    assert torch.autograd.gradcheck(lambda x: loss(synthesis(x, z)), x)
    loss(synthesis(x, z)).backward()
    assert z.grad is None
    with torch.no_grad():
        further = x - 0.1 * x.grad.sign()
    assert (
        torch.cdist(further.flatten(1), further.flatten(1)).sum()
        > torch.cdist(x.flatten(1), x.flatten(1)).sum()
    )


def test_reconstruction_is_the_decoders_error() -> None:
    loss = LatentReconstruction(SPEC, latent_size=5, layers=3, units=11).double()
    x, z = random(8, *SPEC.shape).requires_grad_(), random(8, 5, seed=1).requires_grad_()
    assert [m.out_features for m in loss.decoder if isinstance(m, torch.nn.Linear)] == 3 * [11] + [
        5
    ]
    value = loss(synthesis(x, z))
    recovered = loss.decoder(SPEC.normalize(x).flatten(1))
    torch.testing.assert_close(value, ((recovered - z) ** 2).mean())
    value.backward()
    assert x.grad.abs().sum() > 0
    assert z.grad is None
    assert all(p.grad is not None for p in loss.parameters())


def test_a_latent_of_another_size_is_named() -> None:
    x, z = random(8, *SPEC.shape), random(8, 7, seed=1)
    with pytest.raises(ValueError, match=r"has 7 numbers.* give it latent_size: 7"):
        LatentReconstruction(SPEC, latent_size=5).double()(synthesis(x, z))


def test_norm_is_free_within_the_radius() -> None:
    z = torch.tensor([[3.0, 4.0], [0.5, 0.5], [0.0, 0.0]], dtype=torch.float64).requires_grad_()
    loss = LatentNorm(radius=2.0)
    value = loss(synthesis(torch.zeros(3, *SPEC.shape), z))
    assert value.item() == pytest.approx((5 / math.sqrt(2) - 2) ** 2 / 3)
    value.backward()
    assert z.grad.isfinite().all()
    assert z.grad[0].abs().min() > 0
    assert not z.grad[1:].any()


def test_norm_draws_long_embeddings_back() -> None:
    """Through the generator's latent, and with the gradient of the source's own update."""
    lengths = {}
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        generator = StandardGenerator(
            SPEC, CLASSES, latent_size=5, channels=8, conditional=True, conditioning="add"
        )
        torch.nn.init.constant_(generator.embedding.weight, 4.0)
        losses = {"oh": Weighted(OneHot()), "norm": Weighted(LatentNorm(), weight)}
        adam = functools.partial(torch.optim.Adam, lr=0.05)
        source = generative(generator=generator, objective=Objective(losses), optimizer=adam)
        for _ in range(80):
            source.next()
        lengths[weight] = generator.embedding.weight.norm(dim=1).mean().item()
    assert lengths[1.0] < 0.9 * lengths[0.0]


@pytest.mark.parametrize("make", TERMS)
def test_a_loss_without_a_latent_says_so(make) -> None:
    with pytest.raises(ValueError, match="source with a generator"):
        make()(synthesis(torch.rand(4, *SPEC.shape), None))


def test_added_classes_are_part_of_the_latent() -> None:
    torch.manual_seed(0)
    generator = StandardGenerator(
        SPEC, CLASSES, latent_size=5, channels=8, conditional=True, conditioning="add"
    )
    plain = StandardGenerator(SPEC, CLASSES, latent_size=5, channels=8)
    weights = {k: v for k, v in generator.state_dict().items() if "embedding" not in k}
    plain.load_state_dict(weights)
    z, y = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 0, 1])
    shifted = z + generator.embedding.weight[y]
    assert torch.equal(generator.latent(z, y), shifted)
    assert torch.equal(generator(z, y), plain(shifted))
    assert torch.equal(plain.latent(z), z)
    concatenated = StandardGenerator(SPEC, CLASSES, latent_size=5, channels=8, conditional=True)
    assert torch.equal(concatenated.latent(z, y), z)
    with pytest.raises(ValueError, match=r"'sum' is none of: concat, add, norm"):
        StandardGenerator(SPEC, CLASSES, conditional=True, conditioning="sum")


@pytest.mark.parametrize("size", [2, 3, 7, 12])
def test_each_row_is_made_by_one_member(size: int) -> None:
    net = ensemble(conditioning="add")
    z, y = torch.randn(size, 5), torch.randint(CLASSES, (size,))
    x, latent = net(z, y), net.latent(z, y)
    assert x.shape == (size, *SPEC.shape)
    start = 0
    parts = torch.arange(size).tensor_split(min(3, size))
    for member, part in zip(net.members, parts, strict=False):
        rows = slice(start, start + len(part))
        assert torch.equal(x[rows], member(z[rows], y[rows]))
        assert torch.equal(latent[rows], z[rows] + member.embedding(y[rows]))
        start = rows.stop
        gradients = torch.autograd.grad(
            x[rows].sum(), list(net.parameters()), retain_graph=True, allow_unused=True
        )
        mine = {id(p) for p in member.parameters()}
        for p, g in zip(net.parameters(), gradients, strict=True):
            assert id(p) in mine or g is None or not g.any()
        assert any(g is not None and g.any() for g in gradients)
    assert start == size


def test_members_start_apart_and_need_be_some() -> None:
    first, second, _ = (member.linear.weight for member in ensemble().members)
    assert not torch.equal(first, second)
    with pytest.raises(ValueError, match="at least one member"):
        ensemble(0)
    assert ensemble(conditional=False)(torch.randn(4, 5)).shape == (4, *SPEC.shape)


def kegnet(runtime: Runtime | None = None, **kwargs: object):
    losses = objective(
        one_hot=OneHot(), decoder=LatentReconstruction(SPEC, 5, units=16), div=LatentDiversity(SPEC)
    )
    torch.manual_seed(6)
    settings = {"generator": ensemble(), "objective": losses, "student_steps": 1, **kwargs}
    return generative(runtime, **settings)


def test_a_source_trains_the_decoder_and_resumes_with_it() -> None:
    torch.manual_seed(5)
    source = kegnet(size=32)
    start = snapshot(source.synthesizer.observe.objective)
    first = None
    for _ in range(60):
        source.next()
        first = first if first is not None else source.report()["decoder"].item()
    decoder = source.synthesizer.observe.objective.losses["decoder"].loss.decoder
    assert all(
        not torch.equal(start[f"losses.decoder.loss.decoder.{k}"], p)
        for k, p in decoder.named_parameters()
    )
    assert source.report()["decoder"].item() < 0.9 * first
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    restored = kegnet(size=32)
    restored.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(3):
        assert torch.equal(source.next().input, restored.next().input)
    assert source.report() == restored.report()


def test_a_losses_gradients_are_averaged_over_ranks_and_clipped() -> None:
    runtime = Runtime(device="cpu")
    averaged: list[Tensor] = []
    runtime.average = lambda tensors: averaged.extend(tensors)  # type: ignore[method-assign]
    sgd = functools.partial(torch.optim.SGD, lr=1.0)
    source = kegnet(runtime, optimizer=sgd, clip=1e-3)
    owned = list(source.synthesizer.observe.objective.parameters())
    everything = [*source.synthesizer.generator.parameters(), *owned]
    before = [p.detach().clone() for p in everything]
    source.next()
    assert [g.shape for g in averaged] == [p.shape for p in owned]
    moved = torch.stack([(a - b).norm() for a, b in zip(before, everything, strict=True)])
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-2)
    assert moved[-len(owned) :].max() > 0


def test_bf16_runs() -> None:
    source = kegnet(Runtime(device="cpu", precision="bf16"))
    for _ in range(3):
        assert source.next().input.isfinite().all()
    assert all(torch.as_tensor(v).isfinite() for v in source.report().values())
