"""The tree: what a foundation model is written as. It knows torch.nn and no adapter."""

from inarch.tree.branch import branch
from inarch.tree.chain import Chain
from inarch.tree.edit import Edit
from inarch.tree.part import part
from inarch.tree.repeated import repeated
from inarch.tree.select import Found, Selection
from inarch.tree.steps import (
    Concat,
    Distribute,
    Export,
    Here,
    Identity,
    Let,
    Parallel,
    Product,
    Residual,
    Seq,
    Sum,
    Use,
)

__all__ = [
    "Chain",
    "Concat",
    "Distribute",
    "Edit",
    "Export",
    "Found",
    "Here",
    "Identity",
    "Let",
    "Parallel",
    "Product",
    "Residual",
    "Selection",
    "Seq",
    "Sum",
    "Use",
    "branch",
    "part",
    "repeated",
]
