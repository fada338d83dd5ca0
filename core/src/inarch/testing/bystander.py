"""What must not change while something is done: a base, looked at before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from inarch.tree import Chain

if TYPE_CHECKING:
    from inarch.adapters import Model


class Bystander:
    """A model's base as it is now: every bit, name, module, form, flag and hook.

    Args:
        model: whose pristine trees are looked at.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.tensors = {
            f"{tree}/{name}": (value, value.detach().clone())
            for tree, chain in model.pristine.items()
            for name, value in (*chain.named_parameters(), *chain.named_buffers())
        }
        self.keys = [(t, list(c.state_dict())) for t, c in model.pristine.items()]
        self.modules = self._modules()
        self.flags = self._flags()

    def _modules(self) -> list[tuple[str, int, int]]:
        return [
            (f"{tree}/{name}", id(module), id(module.form) if isinstance(module, Chain) else 0)
            for tree, chain in self.model.pristine.items()
            for name, module in chain.named_modules(remove_duplicate=False)
        ]

    def _flags(self) -> dict[str, bool | int]:
        flags: dict[str, bool | int] = {}
        for tree, chain in self.model.pristine.items():
            for name, module in chain.named_modules():
                flags[f"{tree}/{name} in training"] = module.training
                hooks = (v for k, v in vars(module).items() if "hooks" in k and v)
                flags[f"{tree}/{name} hooks"] = sum(len(v) for v in hooks)
            for name, parameter in chain.named_parameters():
                flags[f"{tree}/{name} takes gradients"] = parameter.requires_grad
                flags[f"{tree}/{name} has a gradient"] = parameter.grad is not None
        return flags

    def check(self) -> None:
        """Assert that all of it is as it was."""
        for tree, chain in self.model.pristine.items():
            for name, now in (*chain.named_parameters(), *chain.named_buffers()):
                before, bits = self.tensors[f"{tree}/{name}"]
                assert now is before, f"{tree}/{name} is another tensor now"
                assert now.is_meta or torch.equal(now, bits), f"{tree}/{name} has other bits now"
        assert [(t, list(c.state_dict())) for t, c in self.model.pristine.items()] == self.keys
        assert self._modules() == self.modules
        assert self._flags() == self.flags
