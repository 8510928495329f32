"""A run's device, precision, compilation, seeds and torchrun processes, behind one object."""

from __future__ import annotations

import hashlib
import os
import re
import resource
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

# What gloo, NCCL and the store say when a rank is gone
GONE = re.compile("gloo|NCCL|TCPStore|Broken pipe|Connection (closed|reset|refused)")


class Stopped(Exception):
    """The user asked the run to stop; raised only between whole steps."""

    def __str__(self) -> str:
        return super().__str__() or "stopped before the first step; the same command starts again"


class Runtime:
    """Device, precision, seeds and the process group of one run.

    Args:
        device: "auto", "cpu" or "cuda".
        precision: "fp32" or "bf16" (autocast; no loss scaling is needed).
        compile: whether networks are compiled in place.
        seed: of the run; weights are initialised alike on every rank, noise is not.
        deterministic: whether cuDNN may only use algorithms that give the same bits each time;
            otherwise it uses the fastest, found by trial, and a resumed run differs in bits.
        tf32: whether float32 convolutions and matrix products on CUDA may round their factors to
            TF32 (10 bits of mantissa instead of 23), which is several times faster.

    Raises:
        ValueError: for ``device="cuda"`` without CUDA.
    """

    def __init__(
        self,
        device: str = "auto",
        precision: str = "fp32",
        compile: bool = False,
        seed: int = 0,
        deterministic: bool = True,
        tf32: bool = False,
    ) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device=cuda, but PyTorch sees no CUDA device: use device=cpu or auto")
        kind = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
        self.rank = int(os.environ.get("RANK", "0"))
        self.world_size = int(os.environ.get("WORLD_SIZE", "1"))
        local = int(os.environ.get("LOCAL_RANK", "0"))
        self.device = torch.device(kind, local) if kind == "cuda" else torch.device("cpu")
        self.precision = precision
        self.compiled = compile
        self.seed = seed
        self._asked = [False]  # shared by copies of this object: a signal reaches all of them
        if kind == "cuda":
            if local >= torch.cuda.device_count():
                raise ValueError(
                    f"{self.world_size} processes for {torch.cuda.device_count()} CUDA device(s): "
                    "use --nproc-per-node with at most as many as there are devices"
                )
            torch.cuda.set_device(self.device)
            torch.backends.cudnn.deterministic = deterministic
            torch.backends.cudnn.benchmark = not deterministic
            # PyTorch's own default is True for the first; not by fp32_precision, since a process
            # that has used both interfaces gets errors from either
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
        if self.world_size > 1 and not dist.is_initialized():
            backend = "nccl" if kind == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=timedelta(minutes=30))
        torch.manual_seed(seed)

    @classmethod
    def of(cls, config: DictConfig) -> Runtime:
        """The runtime that a composed configuration describes."""
        names = ("device", "precision", "compile", "seed", "deterministic", "tf32")
        return cls(**{name: config[name] for name in names})

    @property
    def stop_requested(self) -> bool:
        """Whether a signal has asked the run to stop."""
        return self._asked[0]

    @stop_requested.setter
    def stop_requested(self, value: bool) -> None:
        self._asked[0] = value

    @property
    def main(self) -> bool:
        """Whether this process writes the run directory."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def noise(self, stream: str, step: int) -> torch.Generator:
        """A random generator that depends on (seed, rank, stream, step) and on nothing else.

        Noise drawn from it is the same after a resume, without any saved state, and different on
        every rank.
        """
        key = f"{self.seed}/{self.rank}/{stream}/{step}".encode()
        seed = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) >> 1
        return torch.Generator(self.device).manual_seed(seed)

    def random_state(self) -> dict[str, Tensor | None]:
        """The global random state, which layers that draw in their forward pass use."""
        cuda = self.device.type == "cuda"
        return {
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state() if cuda else None,
        }

    def restore_random_state(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`random_state` gave, perhaps on another device."""
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"])

    def prepare(self, module: nn.Module) -> nn.Module:
        """Move to the device, in the memory layout that convolutions are fastest in.

        A network of three-dimensional convolutions keeps its own.
        """
        if any(p.dim() == 5 for p in (*module.parameters(), *module.buffers())):
            return module.to(self.device)
        return module.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def compile(self, module: nn.Module) -> nn.Module:
        """Compile in place if the run asks for it; the keys of the state stay the same."""
        if self.compiled:
            # Otherwise two views of one network with different taps share compiled code, and hooks.
            torch._dynamo.config.skip_nnmodule_hook_guards = False
            module.compile()
        return module

    def parallel(self, module: nn.Module, spare: bool = False) -> nn.Module:
        """Average gradients over ranks; a single process gets the module back.

        Args:
            spare: whether a step may leave a parameter without gradient, on all ranks alike. It
                then has none, as in a single process, and DDP looks for such in every step.
        """
        if self.world_size == 1 or not any(p.requires_grad for p in module.parameters()):
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(
            module, device_ids=ids, broadcast_buffers=False, find_unused_parameters=spare
        )

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient that there is by its mean over ranks."""
        self.average([p.grad for p in parameters if p.grad is not None])

    def average(self, tensors: list[Tensor]) -> None:
        """Replace each floating-point tensor by its mean over ranks, in place."""
        if self.world_size > 1:
            for tensor in tensors:
                if tensor.is_floating_point():
                    dist.all_reduce(tensor)
                    tensor /= self.world_size

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """The rows of all ranks, in their order: [world_size·B, ...] of [B, ...], alike on all.

        No gradient passes through it.
        """
        if self.world_size == 1:
            return tensor.detach()
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor.detach().contiguous())
        return torch.cat(parts)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        if self.world_size == 1:
            return flag
        value = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return bool(value.item())

    def first(self, values: Sequence[float]) -> list[float]:
        """The first process's values, on every process: all must make the same decisions."""
        mine = [v if self.main else 0.0 for v in values]
        return self.sum(torch.tensor(mine, dtype=torch.float64, device=self.device)).tolist()

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    @property
    def device_name(self) -> str:
        return torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"

    def peak_memory(self) -> int:
        """Peak bytes: of the device's allocator on CUDA, of the whole process on a CPU."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated())
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    @contextmanager
    def together(self) -> Iterator[None]:
        """A context for work that ranks share.

        Raises:
            ValueError: in place of the communication error that follows when another rank ends.
        """
        try:
            yield
        except RuntimeError as error:
            if self.world_size == 1 or not GONE.search(str(error)):
                raise
            raise ValueError(
                "another process of this run has ended, so this one stops too: see that process's "
                "error; the same command continues from the last checkpoint"
            ) from error

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    def asked_to_stop(self, index: int) -> bool:
        """Whether a signal has come, checked in iteration ``index`` of a loop.

        Several ranks must agree, which makes the device wait: they do so in every tenth only.
        """
        if self.world_size > 1 and index % 10:
            return False
        return self.any(self.stop_requested)
