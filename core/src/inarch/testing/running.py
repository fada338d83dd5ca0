"""An adapter in other conditions: copied, cast, on no device, compiled, after a failure, cached."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch

from inarch.errors import InarchError
from inarch.testing.bystander import Bystander
from inarch.testing.subject import (
    NAME,
    Subject,
    assert_close,
    flat,
    inputs_of,
    moved,
    outputs,
    refusal,
    same_bits,
)
from inarch.testing.tiny import Tiny

if TYPE_CHECKING:
    from inarch.adapters import Model


class Running(Subject):
    """Tests of the conditions a model runs in."""

    def test_it_gives_the_same_bits_each_time(self, base: Model) -> None:
        model = self.trained(base)
        assert same_bits(outputs(model), outputs(model))

    @pytest.mark.parametrize("how", ["pickled", "copied"])
    def test_a_copy_of_its_trees_is_equal_and_independent(self, tiny: Tiny, how: str) -> None:
        model = self.trained(tiny.build())
        expected = outputs(model)
        trees = model.trees
        model.trees = (
            pickle.loads(pickle.dumps(trees)) if how == "pickled" else copy.deepcopy(trees)
        )
        assert same_bits(outputs(model), expected)
        state = dict(model.trees.items())
        with torch.no_grad():
            for tree in trees.values():
                for parameter in tree.parameters():
                    parameter.zero_()
        model.trees = state
        assert same_bits(outputs(model), expected), "the copy reads weights of what it is copied of"

    def test_a_copy_of_the_whole_model_is_equal(self, quick: Model) -> None:
        model = self.trained(quick)
        expected = outputs(model)
        again = copy.deepcopy(model)
        assert again.adapters.names == model.adapters.names
        assert same_bits(outputs(again), expected)
        again.adapters[NAME].trainable = bool(self.parameters(again))
        assert not any(p.requires_grad for p in model.parameters())

    def test_in_bfloat16_it_takes_the_base_s_dtype(self, tiny: Tiny) -> None:
        base = tiny.build(dtype=torch.bfloat16)
        fresh = self.fresh(base)
        fresh.adapters[NAME].trainable = False
        dtypes = {p.dtype for p in self.parameters(fresh).values() if p.is_floating_point()}
        assert dtypes <= {torch.bfloat16}
        if not self.entry.initial_effect:
            assert not moved(outputs(fresh), outputs(base))
        found, plain = outputs(self.trained(base)), outputs(base)
        assert [t.dtype for t in found[: len(plain)]] == [t.dtype for t in plain]
        assert moved(found, plain)

    def test_on_the_meta_device_it_has_the_same_names_and_shapes(self, tiny: Tiny) -> None:
        real, unreal = self.fresh(tiny.build()), self.fresh(tiny.build(device="meta"))
        shapes = {name: tensor.shape for name, tensor in real.state_dict().items()}
        assert {name: tensor.shape for name, tensor in unreal.state_dict().items()} == shapes
        assert all(p.is_meta for p in unreal.parameters())
        expected = [(t.shape, t.dtype) for t in outputs(real)]
        assert [(t.shape, t.dtype) for t in outputs(unreal)] == expected

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_on_a_gpu_it_gives_what_it_gives_on_a_cpu(self, tiny: Tiny) -> None:
        here, there = self.trained(tiny.build()), self.fresh(tiny.build(device="cuda"))
        there.adapters[NAME].trainable = False
        values = self.parameters(here)
        with torch.no_grad():
            for name, parameter in self.parameters(there).items():
                parameter.copy_(values[name])
        assert all(p.is_cuda for p in there.parameters())
        with torch.backends.cudnn.flags(allow_tf32=False):
            found = outputs(there)
        assert all(tensor.is_cuda for tensor in found)
        assert_close([t.cpu() for t in found], outputs(here), within=max(self.within, 1e-4))

    def test_compiled_whole_it_gives_the_same_and_another_scale_compiles_nothing(
        self, quick: Model
    ) -> None:
        from torch._dynamo.testing import CompileCounter

        model = self.trained(quick)
        scalable = bool(list(model.adapters[NAME].edges))
        for tree in dict.fromkeys(tree for tree, _ in inputs_of(model)):
            inputs = next(inputs for name, inputs in inputs_of(model) if name == tree)
            if model.trees[tree] is quick.trees[tree]:
                continue
            torch._dynamo.reset()
            counter = CompileCounter()
            compiled: Any = torch.compile(model.trees[tree], backend=counter, fullgraph=True)
            for scale in (1.0, 0.5, -2.0) if scalable else (1.0,):
                model.adapters[NAME].scale = scale
                with torch.no_grad():
                    pairs = [flat(run(**inputs)) for run in (compiled, model.trees[tree])]
                assert_close(*pairs, within=self.within)
            assert counter.frame_count == 1, "rescaling compiled it again"

    def test_a_forward_that_fails_halfway_leaves_nothing_behind(self, base: Model) -> None:
        def fail(*_: Any) -> None:
            raise ZeroDivisionError

        model = self.trained(base)
        expected = outputs(model)
        own = list(model.adapters[NAME].modules.values())
        last = own[-1] if own else list(next(iter(model.trees.values())).modules())[-1]
        handle = last.register_forward_pre_hook(fail)
        with pytest.raises(ZeroDivisionError):
            outputs(model)
        handle.remove()
        assert same_bits(outputs(model), expected)

    def test_generating_over_the_cache_is_running_from_the_start(self, every: Model) -> None:
        from inarch.nn import LanguageModel

        if not isinstance(every, LanguageModel):
            pytest.skip("the model does not generate text")
        model: Any = self.trained(every)
        prompts = [[1, 5, 2, 8, 3], [4, 6]]
        steps = list(model.generate_ids(prompts, max_new_tokens=6, stop=frozenset()))
        for row, prompt in enumerate(prompts):
            ids = list(prompt)
            for step in steps:
                logits = model(torch.tensor([ids]))[0, -1]
                assert step[row] == int(logits.argmax()), f"prompt {row} after {ids}"
                ids.append(step[row])

    def test_in_a_mixed_batch_it_is_in_its_rows_alone(self, every: Model) -> None:
        from inarch.nn import LanguageModel

        if not isinstance(every, LanguageModel):
            pytest.skip("the model does not generate text")
        model: Any = self.trained(every)
        prompts: list[list[int]] = [[1, 5, 2, 8, 3], [4, 6], [4, 6]]
        adapters = [None, NAME, None]
        steps = list(
            model.generate_ids(prompts, adapters=adapters, max_new_tokens=4, stop=frozenset())
        )
        for row, name in enumerate(adapters):
            alone: Any = model if name else every
            expected = alone.generate_ids([prompts[row]], max_new_tokens=4, stop=frozenset())
            assert [step[row] for step in steps] == [token for [token] in expected]
        try:
            mixed: Any = model.rows(adapters)
        except InarchError as error:
            assert error.code == "IA514"
            pytest.skip("it can't run on some rows, and says why")
        ids = torch.tensor([[1, 5, 2, 8], [4, 6, 7, 3], [4, 6, 7, 3]])
        found = mixed(ids)
        assert_close([found[1:2]], [model(ids[1:2])], self.within)
        assert_close([found[2:]], [every(ids[2:])], self.within)

    def test_a_scale_it_does_not_have_is_refused(self, quick: Model) -> None:
        model = self.trained(quick)
        if list(model.adapters[NAME].edges):
            pytest.skip("it has a scale")
        bystander = Bystander(quick)
        error = refusal(lambda: quick.adapt(self.spec(scale=0.5)))
        assert error.code == "IA409"
        with pytest.raises(InarchError, match="has no scale"):
            model.adapters[NAME].scale = 0.5
        bystander.check()
