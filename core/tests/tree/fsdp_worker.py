"""One of two processes that shard a tree with FSDP2 on CPU; `test_fsdp_trees.py` starts it.

Arguments: rank, a file to meet at, a file for what rank 0 found.
"""

from __future__ import annotations

import datetime
import sys

import torch
import torch.distributed as dist
from small_trees import language_model, linear, low_rank_edits
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, distribute_tensor

from inarch.errors import InarchError
from inarch.tree import Chain, Edit


def tree_of(kind):
    """The same tree, bit for bit, in every process."""
    torch.manual_seed(0)
    tree = language_model(2)
    if kind == "adapted":
        tree = tree.edit(
            [*low_rank_edits(tree, "a"), Edit.tap("model.layers.0", "early", "b", export=True)]
        ).edit([Edit.add("model.layers.1", torch.tanh, "b")])
    return tree


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 11, (4, 5), generator=generator), torch.arange(5)[None]


def loss_of(tree, ids, positions):
    value = tree(ids, positions=positions, mask=None)
    return sum(v.square().mean() for v in (value if isinstance(value, tuple) else (value,)))


def edit_code(tree):
    """The code with which a late edit is refused."""
    try:
        tree.edit([Edit.add("lm_head", torch.tanh, "late")])
    except InarchError as error:
        return error.code
    return ""


def replicated_edit_code(mesh):
    tree = Chain(lm_head=linear())
    weight = distribute_tensor(tree.lm_head.weight.detach(), mesh, [Replicate()])
    tree.lm_head.weight = torch.nn.Parameter(weight)
    return edit_code(tree)


def found_by(rank, mesh, kind):
    """Loss and gradients of a sharded tree over this process's half of the batch."""
    tree = tree_of(kind)
    for block in list(tree.model.layers):
        fully_shard(block, mesh=mesh)
    fully_shard(tree, mesh=mesh)
    refused = edit_code(tree)
    found = {"refused": [refused, replicated_edit_code(mesh)]}
    ids, positions = batch()
    loss = loss_of(tree, ids[rank * 2 : rank * 2 + 2], positions)
    loss.backward()
    gradients = {n: p.grad.full_tensor() for n, p in tree.named_parameters() if p.grad is not None}
    losses = [torch.zeros(()) for _ in range(2)]
    dist.all_gather(losses, loss.detach())
    tied = tree.lm_head.weight is tree.model.embed_tokens.weight
    return found | {"losses": losses, "gradients": gradients, "tied": tied}


def work(rank, meeting, result):
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=60)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=limit
    )
    mesh = DeviceMesh("cpu", torch.arange(2))
    found = {kind: found_by(rank, mesh, kind) for kind in ("base", "adapted")}
    if rank == 0:
        torch.save(found, result)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    work(int(sys.argv[1]), *sys.argv[2:])
