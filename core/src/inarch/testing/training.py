"""Who takes gradients and who moves: the adapter that is trained, whatever else is done."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from inarch.testing.bystander import Bystander
from inarch.testing.subject import NAME, Subject, outputs
from inarch.testing.tiny import Tiny

if TYPE_CHECKING:
    from inarch.adapters import Model


def loss_of(found: list[Tensor]) -> Tensor:
    return torch.stack([t.float().square().mean() for t in found if t.requires_grad]).sum()


class Training(Subject):
    """Tests of gradients, trainability and steps."""

    def test_only_its_parameters_take_gradients(self, base: Model) -> None:
        model = self.fresh(base)
        self.needs_parameters(model)
        taking = {id(p) for p in model.parameters() if p.requires_grad}
        assert taking == {id(p) for p in self.parameters(model).values()}

    def test_only_its_parameters_move_in_a_step(self, base: Model) -> None:
        bystander = Bystander(base)
        model = self.fresh(base)
        self.needs_parameters(model)
        before = {k: v.detach().clone() for k, v in self.parameters(model).items()}
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
        for _ in range(2):
            optimizer.zero_grad()
            loss_of(outputs(model)).backward()
            optimizer.step()
        after = self.parameters(model)
        assert any(not torch.equal(after[k], before[k]) for k in before), "nothing learns"
        bystander.check()

    def test_every_parameter_of_it_is_reached_by_a_gradient(self, every: Model) -> None:
        model = self.trained(every)
        self.needs_parameters(model)
        model.adapters[NAME].trainable = True
        loss_of(outputs(model)).backward()
        idle = [k for k, p in self.parameters(model).items() if p.grad is None]
        assert not idle, "no example of the model reaches these"

    def test_a_step_lowers_the_loss_it_was_made_for(self, base: Model) -> None:
        model = self.trained(base)
        self.needs_parameters(model)
        model.adapters[NAME].trainable = True
        loss = loss_of(outputs(model))
        loss.backward()
        loss = loss.detach()
        parameters = list(self.parameters(model).values())
        squares = sum(float(p.grad.square().sum()) for p in parameters if p.grad is not None)
        with torch.no_grad():
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter -= parameter.grad * (0.01 * float(loss) / max(squares, 1e-12))
        assert float(loss_of(outputs(model)).detach()) < float(loss)

    def test_gradients_of_its_modules_are_those_of_finite_differences(self, tiny: Tiny) -> None:
        if not self.differentiable:
            pytest.skip("its gradients are other ones on purpose")
        model = self.trained(tiny.build(dtype=torch.float64))
        self.needs_parameters(model)
        calls = _calls(model, model.adapters[NAME].modules.values())
        assert calls, "no example of the model runs its modules"
        for module, (args, kwargs) in calls.items():
            module.requires_grad_(True)
            given = [a.detach().clone().requires_grad_() for a in args if _differentiable(a)]
            passed = {k: v.detach().clone().requires_grad_() for k, v in _named(kwargs)}

            def run(*values: Tensor, call: Any = (module, args, {**kwargs, **passed})) -> Any:
                module, args, kwargs = call
                left = iter(values)
                return module(*(next(left) if _differentiable(a) else a for a in args), **kwargs)

            # Finite differences move each of these in place, the parameters themselves included.
            leaves = [*given, *passed.values(), *module.parameters()]
            assert torch.autograd.gradcheck(run, leaves, fast_mode=True)

    def test_what_takes_gradients_follows_what_is_asked(self, base: Model, tmp_path: Path) -> None:
        def taking(model: Model) -> set[str]:
            own = {id(p): m.name for m in model.adapters for p in m.parameters().values()}
            return {own.get(id(p), "the base") for p in model.parameters() if p.requires_grad}

        model = self.fresh(base)
        self.needs_parameters(model)
        assert taking(base) == set()
        assert taking(model) == {NAME}
        model.adapters[NAME].trainable = False
        assert taking(model) == set()
        model.adapters[NAME].trainable = True
        model.adapters[NAME].scale = model.adapters[NAME].scale
        assert taking(model) == {NAME}
        assert taking(model.without(NAME)) == set()
        assert taking(base) == set()
        if self.saves:
            [spec] = self.loaded(base, tmp_path, "loaded")
            assert taking(base.adapt(spec)) == set()
        assert not any(module.training for t in base.trees.values() for module in t.modules())

    def test_training_mode_is_its_own(self, base: Model) -> None:
        model = self.fresh(base)
        self.needs_parameters(model)
        own = {id(m) for whole in model.adapters[NAME].modules.values() for m in whole.modules()}
        for trainable in (True, False):
            model.adapters[NAME].trainable = trainable
            modes = {m.training for t in model.trees.values() for m in t.modules() if id(m) in own}
            assert modes == {trainable}
            others = [m for t in model.trees.values() for m in t.modules() if id(m) not in own]
            assert not any(m.training for m in others)


Call = tuple[tuple[Any, ...], dict[str, Any]]


def _calls(model: Model, modules: Iterable[nn.Module]) -> dict[nn.Module, Call]:
    """What modules are called with when the model runs: one of each class and shape of weights."""
    found: dict[nn.Module, Call] = {}
    seen: set[Any] = set()

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        shapes = tuple((name, p.shape) for name, p in module.named_parameters())
        if shapes and (type(module), shapes) not in seen:
            seen.add((type(module), shapes))
            found[module] = (args, kwargs)

    handles = [m.register_forward_pre_hook(note, with_kwargs=True) for m in modules]
    with torch.no_grad():
        outputs(model)
    for handle in handles:
        handle.remove()
    return found


def _differentiable(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _named(values: dict[str, Any]) -> list[tuple[str, Tensor]]:
    return [(name, value) for name, value in values.items() if _differentiable(value)]
