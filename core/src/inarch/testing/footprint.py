"""What an adapter touches: what its edits and its manifest say, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from inarch.testing.bystander import Bystander
from inarch.testing.subject import NAME, Subject, moved, outputs, refusal, same_bits, trained
from inarch.tree.names import adapter_of

if TYPE_CHECKING:
    from inarch.adapters import Model

PLAIN_NAMES = (
    "lora",
    "weight",
    "base_layer",
    "a",
    "ab",
    "x",
    "self",
    "forward",
    "scale",
    "é",
    "量",
)
NO_NAMES = ("a.b", "a b", "", "1st", "a__b", "_a", "ﬁ")


class Footprint(Subject):
    """Tests of where an adapter stands, how it begins, and what is left when it goes."""

    def test_it_touches_only_what_its_manifest_says(self, every: Model) -> None:
        member = self.fresh(every).adapters[NAME]
        kinds = {edit.kind for edit in member.edits}
        assert kinds, "it makes no edit"
        assert kinds <= set(self.entry.kinds), "it makes edits of kinds its manifest lacks"
        asked = self.options.get("targets", ())
        wanted = [*self.entry.roles, *([asked] if isinstance(asked, str) else asked)]
        allowed = {site.address for site in every.sites.find(wanted)}
        reached = {edit.address for edit in member.edits if edit.kind != "provide"}
        assert reached <= allowed, "it edits sites of no role that its manifest names"

    def test_it_brings_only_what_bears_its_name(self, base: Model) -> None:
        model = self.fresh(base)
        own = {id(m) for whole in model.adapters[NAME].modules.values() for m in whole.modules()}
        for tree, chain in model.trees.items():
            before = set(dict(base.trees[tree].named_modules(remove_duplicate=False)))
            for path, module in chain.named_modules(remove_duplicate=False):
                if path not in before:
                    assert any(adapter_of(part) == NAME for part in path.split("."))
                    assert id(module) in own, f"{path} is a module that none of its edits brought"
        asked = {name for edit in model.adapters[NAME].edits for name in edit.inputs}
        assert set(model.inputs) - set(base.inputs) <= asked, "it asks for inputs in silence"

    def test_it_copies_only_the_chains_on_the_way_to_its_edits(self, base: Model) -> None:
        model = self.fresh(base)
        for tree, chain in base.trees.items():
            prefix = f"{tree}." if tree else ""
            member = model.adapters[NAME]
            edited = {e.address for e in member.edits} | {w.site for w in member.adapter.learned()}
            inner = {a.removeprefix(prefix) for a in edited if a.startswith(prefix) or a == tree}
            ways = [
                ".".join(chain.form.index[a][0]) if a in chain.form.index else "" for a in inner
            ]
            shared = model.trees[tree]
            for path, module in chain.named_modules(remove_duplicate=False):
                if not any(f"{way}.".startswith(f"{path}." if path else "") for way in ways):
                    assert shared.get_submodule(path) is module, f"{path} was copied for nothing"

    def test_it_reads_only_weights_it_says_it_reads(self, base: Model) -> None:
        reader = _Reader(base)
        with reader:
            reader.inside += 1
            model = self.fresh(base)
            reader.inside -= 1
            with reader.watching(model.adapters[NAME].modules.values()), torch.no_grad():
                outputs(model)
        said = {address for edit in model.adapters[NAME].edits for address in edit.reads}
        unsaid = {a for a in reader.read if not any(_within(a, one) for one in said)}
        assert not unsaid, "it reads weights that none of its edits names in `reads`"

    def test_an_untrained_one_changes_no_output_bit(self, every: Model) -> None:
        model = self.fresh(every)
        model.adapters[NAME].trainable = False
        changed = moved(outputs(model), outputs(every))
        said = self.entry.initial_effect
        assert not (changed and not said), "it changes outputs, and says no `initial_effect`"
        assert not (said and not changed), f"it changes nothing, but its manifest says: {said}"

    def test_a_trained_one_has_an_effect(self, base: Model) -> None:
        assert moved(outputs(self.trained(base)), outputs(base))

    def test_dropping_it_leaves_every_base_bit_name_and_module(self, every: Model) -> None:
        expected, bystander = outputs(every), Bystander(every)
        model = self.trained(every)
        outputs(model)
        dropped = model.without(NAME)
        bystander.check()
        for tree, chain in every.trees.items():
            assert dropped.trees[tree] is chain
        assert list(dropped.state_dict()) == list(every.state_dict())
        assert same_bits(outputs(dropped), expected)
        assert same_bits(outputs(every), expected)

    def test_no_base_name_moves(self, base: Model) -> None:
        names = list(base.state_dict())
        state = self.fresh(base).state_dict()
        assert [name for name in state if name in set(names)] == names

    def test_any_identifier_may_be_its_name(self, quick: Model) -> None:
        expected = outputs(self.trained(quick))
        first = self.fresh(quick).adapters[NAME].edits[0].address.rpartition(".")[2]
        label = first if first.isidentifier() else "layers"
        for name in (*PLAIN_NAMES, label):
            spec = self.spec(name)
            model = trained(quick, spec, NAME)
            assert model.adapters.names == (name,)
            assert same_bits(outputs(model), expected), f"the name {name} changes what it computes"

    def test_a_name_that_is_none_is_refused(self, quick: Model) -> None:
        bystander = Bystander(quick)
        for name in NO_NAMES:
            error = refusal(lambda name=name: quick.adapt(self.spec(name)))
            assert error.code == "IA116"
            assert repr(name) in error.what
        bystander.check()

    def test_names_are_never_matched_by_their_beginning(self, quick: Model) -> None:
        expected = outputs(self.trained(quick, "ab"))
        try:
            both = self.trained(quick, "ab").adapt(self.spec("a"))
        except Exception as error:
            assert getattr(error, "code", "").startswith("IA4"), error
            return
        both.adapters["a"].trainable = False
        assert set(both.adapters["a"].parameters()) == set(both.adapters["ab"].parameters())
        own = {id(p) for p in both.adapters["a"].parameters().values()}
        assert not own & {id(p) for p in both.adapters["ab"].parameters().values()}
        assert same_bits(outputs(both.without("a")), expected)


def _within(address: str, said: str) -> bool:
    return address == said or address.startswith(f"{said}.") or fnmatchcase(address, said)


_ASKED = ("shape", "dtype", "device", "is_meta", "requires_grad", "ndim", "layout", "grad")


class _Reader(TorchFunctionMode):
    """Notes which of a base's weights torch is called with while an adapter's own code runs.

    Tensors are told by their storage, so that a view of a weight counts as the weight.
    """

    def __init__(self, base: Model) -> None:
        super().__init__()
        self.inside = 0
        self.read: set[str] = set()
        self.passed: set[int] = set()
        self.owners: dict[int, str] = {}
        for tree, chain in base.pristine.items():
            for name, tensor in chain.named_parameters():
                self.owners[_storage(tensor)] = f"{tree}.{name}" if tree else name

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        getter = getattr(func, "__self__", None)
        asked = getattr(getter, "__name__", "") in _ASKED
        metadata = getattr(func, "__name__", "") in ("size", "dim", "numel", "stride", "__hash__")
        if self.inside and not asked and not metadata:
            with torch._C.DisableTorchFunction():
                for tensor in _tensors((args, kwargs or {})):
                    key = _storage(tensor)
                    if key in self.owners and key not in self.passed:
                        self.read.add(self.owners[key])
        return func(*args, **(kwargs or {}))

    @contextmanager
    def watching(self, modules: Any) -> Generator[None]:
        """While it lasts, what runs in the modules counts, but not what is passed to them."""

        def begin(_module: nn.Module, args: Any, kwargs: Any) -> None:
            with torch._C.DisableTorchFunction():
                self.passed |= {_storage(t) for t in _tensors((args, kwargs))}
            self.inside += 1

        def end(*_: Any) -> None:
            self.inside -= 1

        handles: list[Any] = []
        for module in modules:
            handles.append(module.register_forward_pre_hook(begin, with_kwargs=True))
            handles.append(module.register_forward_hook(end))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() or -id(tensor)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
