"""`inarch.shard`: a model over all processes that were started, as the last step of a script."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from inarch.adapters import Member, Members, Model
from inarch.distribute.layout import Plan, Spread, alike
from inarch.distribute.processes import pause_at_exit
from inarch.distribute.tensor import split_over
from inarch.errors import InarchError
from inarch.tree import Chain

if TYPE_CHECKING:
    from torch.distributed.fsdp import MixedPrecisionPolicy

SomeModel = TypeVar("SomeModel", bound=Model)


def shard(
    model: SomeModel,
    plan: Plan = "replicate",
    mesh: DeviceMesh | None = None,
    *,
    policy: MixedPrecisionPolicy | None = None,
) -> SomeModel:
    """A model over the processes of a group, each of which has equal weights and calls this.

    The last step of a script: what comes out runs, is trained and is saved, and is not adapted any
    more. `fsdp` changes the modules of `model` in place, which shares them with its base.

    Args:
        model: adapted, on this process's device.
        plan: `replicate`, each process has all weights and its own examples; `fsdp`, the weights
            of each block are shared out (FSDP2) and examples are each process's own; `tensor`,
            each layer is shared out by its role and all processes have the same examples.
        mesh: of one dimension; by default all processes. With a second named `tensor` each layer
            is shared out over that one, and `plan` is for the other.
        policy: of `fsdp`: in which dtypes it computes and adds up.

    Raises:
        InarchError: IA880 where the model or the mesh doesn't allow it, IA881 for an adapter that
            can't be split. Nothing was changed.
    """
    data, tensor = _dimensions(mesh, plan, model)
    pause_at_exit()
    if model.layout is not None:
        raise _refused("the model is sharded already", "", "shard it once, last")
    if plan == "fsdp":  # which shares out each layer's own parameters
        model = model.unpacked()
    meshes = [m for m in (data, tensor) if m is not None]
    _as_the_first([p for p in model.parameters() if p.requires_grad], meshes)
    fingerprint = model.fingerprint()
    if not alike(fingerprint, meshes):
        why = f"this one has {fingerprint}, another has not"
        raise _refused("the processes have other weights", why, "load the same in every process")
    result, placed, grafted = copy.copy(model), {}, None
    if tensor is not None:
        result, placed, grafted = split_over(model, tensor)
    kept = [n for n in vars(result) if isinstance(getattr(type(result), n, None), cached_property)]
    for name in kept:  # made of the trees as they were
        del vars(result)[name]
    result._fingerprint = fingerprint  # pyright: ignore[reportPrivateUsage]
    result.layout = Spread(data, tensor, placed, result.sites, grafted, fixed=plan == "fsdp")
    result.adapters = Members([_with_inner(m, result.layout) for m in result.adapters])
    if plan == "fsdp" and data is not None:
        _fully(result, data, {} if policy is None else {"mp_policy": policy})
    return result


@torch.no_grad()
def _as_the_first(parameters: list[nn.Parameter], meshes: list[DeviceMesh]) -> None:
    """Give parameters that were drawn afresh, perhaps from other seeds, the first one's values.

    They are copied, which counts their versions up, so that what was made of them is made anew.
    """
    for parameter in parameters:
        value = parameter.detach().contiguous().clone()
        for mesh in meshes:
            dist.broadcast(value, group=mesh.get_group(), group_src=0)
        parameter.copy_(value)


def _with_inner(member: Member, layout: Spread) -> Member:
    """The member whose own tree, where it brings one as a model, lies as the whole does."""
    if member.inner is None:
        return member
    inner = copy.copy(member.inner)
    inner._fingerprint = inner.fingerprint()  # pyright: ignore[reportPrivateUsage]
    inner.layout = replace(layout, sites=inner.sites, grafted=None, fixed=True)
    inner.adapters = Members([_with_inner(m, inner.layout) for m in inner.adapters])
    return replace(member, inner=inner)


def _dimensions(
    mesh: DeviceMesh | None, plan: str, model: Model
) -> tuple[DeviceMesh | None, DeviceMesh | None]:
    """The mesh of examples and that of layers."""
    if plan not in ("replicate", "fsdp", "tensor"):
        raise _refused(f"`{plan}` is no plan", "", "name replicate, fsdp or tensor")
    if not dist.is_initialized():
        raise _refused(
            "no group of processes was started",
            "torch.distributed is not initialised",
            "start the script with torchrun, and call torch.distributed.init_process_group",
        )
    device = model.device.type
    if mesh is None:
        mesh = init_device_mesh(device, (dist.get_world_size(),))
    if mesh.device_type != device:
        why = f"the mesh is of {mesh.device_type}, the model is on {device}"
        raise _refused("the mesh is not the model's", why, "load the model on that device")
    if mesh.ndim == 1:
        return (None, mesh) if plan == "tensor" else (mesh, None)
    names = mesh.mesh_dim_names or ()
    if mesh.ndim != 2 or "tensor" not in names or plan == "tensor":
        raise _refused(
            f"a mesh of {mesh.ndim} dimensions is not one for `{plan}`",
            f"its dimensions are called: {', '.join(names) or 'nothing'}",
            'init_device_mesh("cuda", (2, 4), mesh_dim_names=("data", "tensor"))',
        )
    [other] = [name for name in names if name != "tensor"]
    return mesh[other], mesh["tensor"]


def _fully(model: Model, mesh: DeviceMesh, options: dict[str, Any]) -> None:
    """FSDP2 for each block, the inmost first, then for what is left of each tree.

    Gradients are sums, as `Spread.reduce_gradients` makes them elsewhere: gloo knows no mean.
    """
    roles = [role for role in model.roles if "block" in role.split(".")]
    blocks = {site.address for role in roles for site in model.sites.find([role])}
    for name, tree in model.trees.items():
        prefix = f"{name}." if name else ""
        inside = [a.removeprefix(prefix) for a in blocks if a.startswith(prefix)]
        inside.sort(key=lambda address: (-address.count("."), address))
        chains: list[nn.Module] = [tree.get_submodule(address) for address in inside]
        if name not in model.in_stretches:
            chains.append(tree)
        elif not chains:
            chains = [child for child in tree.children() if isinstance(child, Chain)]
        numbers = {p for p in tree.parameters() if p.dim() == 0}  # there is nothing to share out
        reshard = True if name in model.in_stretches else None  # each is the root of its own
        for module in chains:
            sharded: Any = fully_shard(
                module, mesh=mesh, reshard_after_forward=reshard, ignored_params=numbers, **options
            )
            sharded.set_force_sum_reduction_for_comms(True)
            sharded.set_gradient_divide_factor(1.0)


def _refused(what: str, why: str, remedy: str) -> InarchError:
    return InarchError("IA880", what, where="inarch.shard", why=why, remedy=remedy)
