"""How a model lies over processes, and what follows: its gradients, its norms, its files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from inarch.adapters.placement import WHOLE, Placed, Placement, Split
from inarch.distribute.parts import Placements, part_of, together
from inarch.errors import InarchError
from inarch.tree.twin import twin_of

if TYPE_CHECKING:
    from inarch.adapters import SiteView
    from inarch.adapters.member import Member
    from inarch.nn.tokenizer import Tokenizer
    from inarch.tree import Chain

Plan = Literal["replicate", "fsdp", "tensor"]
Grafted: TypeAlias = "Callable[[Sequence[Member]], tuple[dict[str, Chain], dict[str, Tokenizer]]]"


@dataclass(eq=False)
class Spread:
    """How a model lies over processes.

    Attributes:
        data: the processes that have examples of their own; None where all have the same.
        tensor: the processes that share each layer; None where each has whole layers.
        placed: how the tensors of modules lie over `tensor`; what is not named is whole.
        sites: of the model, whose modules are this process's parts.
        grafted: makes the model's trees of fewer of its adapters, in canonical order; None where
            that is done as in one process.
        fixed: whether it must have the adapters it has, since FSDP2 changed modules in place.
    """

    data: DeviceMesh | None
    tensor: DeviceMesh | None
    placed: Mapping[nn.Module, Placements] = field(repr=False)
    sites: SiteView = field(repr=False)
    grafted: Grafted | None = field(default=None, repr=False)
    fixed: bool = False

    # Who this process is

    @property
    def writes(self) -> bool:
        return dist.get_rank() == 0

    @property
    def part_of_data(self) -> tuple[int, int]:
        """Which part of each batch is this process's, of how many."""
        return (0, 1) if self.data is None else (self.data.get_local_rank(), self.data.size())

    def wait(self) -> None:
        dist.barrier()

    def by_first(self, work: Callable[[], object]) -> None:
        """Done by the first process while the others wait; what it raises, all raise."""
        told: list[Exception | None] = [None]
        try:
            if self.writes:
                work()
        except (InarchError, OSError) as error:
            told = [error]
        except Exception as error:  # which may not be one that can be sent
            told = [RuntimeError(f"{type(error).__name__}: {error}")]
        dist.broadcast_object_list(told, device=self._device())
        if told[0] is not None:
            raise told[0]

    def lets_go(self, members: Iterable[Member]) -> bool:
        """Whether there may be a model without some adapters, which lies as this one does."""
        return not self.fixed and (self.tensor is None or not any(m.merged for m in members))

    # Gradients

    def reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make each gradient that of the sum of all processes' losses.

        Called once a step, after the last backward and by every process. FSDP2 has added up those
        of what it shares out by then.

        Args:
            parameters: those that take gradients, in one order everywhere.
        """
        given = list(parameters)
        if self.tensor is not None:
            placements = self._by_parameter()
            kinds = [placements.get(id(p), WHOLE).kind for p in given]
            _reduce([p for p, k in zip(given, kinds, strict=True) if k == "summed"], self.tensor)
            if self.tensor.get_local_rank():
                for parameter, kind in zip(given, kinds, strict=True):
                    if kind == "first":
                        parameter.grad = None
        if self.data is not None:
            _reduce([p for p in given if not isinstance(p, DTensor)], self.data)

    def norm(self, parameters: Iterable[nn.Parameter]) -> Tensor:
        """The norm of the gradients of the whole model, 0-dim float32, the same everywhere."""
        placements = self._by_parameter()
        total: Tensor | None = None
        for parameter in parameters:
            if parameter.grad is None:
                continue
            own = local(parameter.grad).float().square().sum()
            kind = placements.get(id(parameter), WHOLE).kind
            once = kind in ("shard", "first") or _is_first(self.tensor)
            once = once and (isinstance(parameter, DTensor) or _is_first(self.data))
            own = own if once else torch.zeros_like(own)
            total = own if total is None else total + own
        if total is None:  # here: another process may have the only ones
            total = torch.zeros((), device=self._device())
        dist.all_reduce(total)
        return total.sqrt()

    def clip(self, parameters: Iterable[nn.Parameter], limit: float) -> None:
        """Cut the gradients to a norm, as `torch.nn.utils.clip_grad_norm_` does in one process."""
        given = list(parameters)
        share = (limit / (self.norm(given) + 1e-6)).clamp(max=1.0)
        for parameter in given:
            if parameter.grad is not None:
                local(parameter.grad).mul_(share.to(parameter.grad.dtype))

    def alike(self, value: object) -> bool:
        """Whether every process has an equal value; all ask at once."""
        return alike(value, [mesh for mesh in (self.data, self.tensor) if mesh is not None])

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process; all ask at once."""
        value = torch.tensor(float(flag), device=self._device())
        dist.all_reduce(value)
        return bool(value)

    def _device(self) -> torch.device | None:
        """Where the processes' messages lie."""
        mesh = self.data or self.tensor
        return None if mesh is None else torch.device(mesh.device_type)

    def total(self, value: Tensor) -> Tensor:
        """A sum over the processes that have examples of their own, in place."""
        if self.data is not None:
            dist.all_reduce(value, group=self.data.get_group())
        return value

    # Whole tensors

    def whole(self, member: Member) -> Mapping[str, nn.Module]:
        """An adapter's modules with whole tensors, which the model's own don't share."""
        sites = {edit.address: self.sites.module_at(edit.address) for edit in member.edits}
        made: dict[str, nn.Module] = {}
        for address, module in member.modules.items():
            site = sites.get(address.partition(":")[0])
            made[address] = self._whole(module, None if site is None else self._stand_in(site))
        return made

    def _whole(self, module: nn.Module, site: nn.Module | None) -> nn.Module:
        twin: Any = twin_of(module)
        rule = self.placed.get(module, {})
        for name, tensor in module._parameters.items():
            if tensor is not None:
                value = self._gathered(tensor, rule.get(name, WHOLE))
                twin._parameters[name] = nn.Parameter(value, requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                twin._buffers[name] = self._gathered(buffer, rule.get(name, WHOLE))
        for name, child in module._modules.items():
            if child is not None:
                twin._modules[name] = self._whole(child, None)
        if isinstance(module, Placed):
            twin.placed(Split(), site)
        return twin

    def _stand_in(self, site: nn.Module) -> nn.Module:
        """A layer of the base as files need it: whole, its weight without values."""
        twin, rule = twin_of(site), self.placed.get(site, {})
        for name, tensor in site._parameters.items():
            if tensor is None:
                continue
            placement = rule.get(name, WHOLE)
            if name == "weight":
                shape = list(tensor.shape)
                if placement.kind == "shard" and self.tensor is not None:
                    shape[placement.dim] *= self.tensor.size()
                value = torch.empty(shape, dtype=tensor.dtype, device="meta")
            else:
                value = self._gathered(tensor, placement)
            twin._parameters[name] = nn.Parameter(value, requires_grad=False)
        return twin

    def full(self, tensor: Tensor, of: nn.Parameter) -> Tensor:
        """A tensor of a parameter's form, such as its gradient, whole; all processes ask."""
        return self._gathered(tensor, self._by_parameter().get(id(of), WHOLE))

    def _gathered(self, tensor: Tensor, placement: Placement) -> Tensor:
        value = tensor.detach()
        if isinstance(value, DTensor):
            value = value.full_tensor()
        if self.tensor is None or placement.kind not in ("shard", "first"):
            return value
        group = self.tensor.get_group()
        if placement.kind == "first":
            value = value.clone()
            dist.broadcast(value, group=group, group_src=0)
            return value
        value = value.contiguous()
        parts = [torch.empty_like(value) for _ in range(self.tensor.size())]
        dist.all_gather(parts, value, group=group)
        return together(parts, placement)

    # Checkpoints

    def stored(self, tensor: Tensor, of: nn.Parameter) -> Tensor:
        """A tensor of a parameter's shape, such as its moments, as checkpoints keep it."""
        return self._stored(tensor, self._by_parameter().get(id(of), WHOLE))

    def _stored(self, tensor: Tensor, placement: Placement) -> Tensor:
        value = tensor.detach()
        if self.tensor is None or value.dim() == 0:
            return value
        if isinstance(value, DTensor):  # of a part: what the other dimension shares is made whole
            value = value.full_tensor()
        if placement.kind == "first" or placement.pieces > 1:  # DTensor has no word for pieces
            return self._gathered(value, placement)
        places = [Shard(placement.dim) if placement.kind == "shard" else Replicate()]
        return DTensor.from_local(value, self.tensor, places, run_check=False)

    def restored(self, value: Tensor, tensor: Tensor, of: nn.Parameter) -> None:
        """Put what a checkpoint gave for a tensor that it was asked for as `stored`."""
        placement = self._by_parameter().get(id(of), WHOLE)
        if placement.kind == "first" and self.tensor is not None and self.tensor.get_local_rank():
            value = torch.zeros_like(value)
        elif placement.pieces > 1 and self.tensor is not None:
            own = Split("columns", self.tensor.get_local_rank(), self.tensor.size())
            value = part_of(value, placement, own)
        elif self.tensor is not None and isinstance(value, DTensor):
            value = value.to_local()
        if isinstance(tensor, DTensor) and not isinstance(value, DTensor):
            mesh: Any = tensor.device_mesh
            value = distribute_tensor(value, mesh, tensor.placements)
        with torch.no_grad():
            tensor.copy_(value)

    def _by_parameter(self) -> dict[int, Placement]:
        return {
            id(parameter): rule[name]
            for module, rule in self.placed.items()
            for name, parameter in module._parameters.items()
            if parameter is not None and name in rule
        }


def alike(value: object, meshes: Iterable[DeviceMesh]) -> bool:
    """Whether every process of some meshes has an equal value, which all of them are told."""
    same = True  # along the meshes before
    for mesh in meshes:
        told: list[object] = [None] * mesh.size()
        dist.all_gather_object(told, (value, same), group=mesh.get_group())
        same = all(one == (value, True) for one in told)
    return same


def local(tensor: Tensor) -> Tensor:
    """What of a tensor lies in this process."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _is_first(mesh: DeviceMesh | None) -> bool:
    return mesh is None or mesh.get_local_rank() == 0


def _reduce(parameters: list[nn.Parameter], mesh: DeviceMesh) -> None:
    """Add up gradients over processes, all of a dtype in one collective."""
    for group in _by_dtype(parameters):
        for parameter in group:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [local(cast(Tensor, p.grad)) for p in group]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(flat, group=mesh.get_group())
        sums = flat.split([g.numel() for g in gradients])
        for gradient, value in zip(gradients, sums, strict=True):
            gradient.copy_(value.view_as(gradient))


def _by_dtype(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    kinds: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
    for parameter in parameters:
        kinds.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    yield from kinds.values()
