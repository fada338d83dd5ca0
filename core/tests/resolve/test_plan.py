"""A plan says everything and changes nothing; applied it is all of what it said, or nothing."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from safetensors.torch import load_file, save_file
from stacks import WIDTH, made
from torch import Tensor, nn

import inarch
import inarch.adapters.graft
import inarch.adapters.model
from inarch.adapters import Example, Model
from inarch.errors import InarchError
from inarch.resolve import Plan, Refused, resolve, schema

FC = "layers.0.inner.fc"


class Small(Model):
    """The tiny model, with an example of its input."""

    def examples(self) -> Sequence[Example]:
        return (Example("", {"x": torch.zeros(4, WIDTH)}),)


@pytest.fixture
def small(base: Model) -> Small:
    return Small(base.trees, family="small")


def state(model: Model) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def unchanged(model: Model, before: dict[str, Tensor]) -> bool:
    now = model.state_dict()
    return list(now) == list(before) and all(torch.equal(now[k], before[k]) for k in before)


def stack(folder: Path) -> list[inarch.AdapterSpec]:
    """Two adapters of files and a fresh one."""
    specs = []
    for name in ("a", "b"):
        save_file({"w": torch.randn(WIDTH, WIDTH)}, folder / f"{name}.safetensors")
        specs.append(
            made(name, f"add {FC}", weights=folder / f"{name}.safetensors", fills={"weight": "w"})
        )
    return [*specs, made("c", f"scale {FC}", after=["a", "b"])]


def test_a_plan_is_of_the_published_schema_and_reads_back_equal(
    small: Small, tmp_path: Path
) -> None:
    plan = resolve(small, *stack(tmp_path))
    document = json.loads(plan.to_json())
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(document, schema())
    assert Plan.from_json(plan.to_json()) == plan
    assert document["order"] == ["a", "b", "c"]
    assert document["layers"] == [["a", "b"], ["c"]]
    assert [v["verdict"] for v in document["verdicts"]] == ["commute", "user", "user"]
    assert all(v["at"] == [FC] for v in document["verdicts"])


def test_planning_changes_nothing_and_every_permutation_is_one_plan(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inarch.resolve.proof.free_bytes", lambda _device: 2**40)
    specs, before = stack(tmp_path), state(small)
    texts = {resolve(small, *order).to_json() for order in itertools.permutations(specs)}
    assert len(texts) == 1
    assert unchanged(small, before)
    assert small.adapters == ()


def test_an_applied_plan_is_the_adapted_model(small: Small, tmp_path: Path, x: Tensor) -> None:
    specs = stack(tmp_path)
    plan = resolve(small, *specs)
    applied, again = plan.apply(small), Plan.from_json(plan.to_json()).apply(small)
    adapted = small.adapt(*reversed(specs))
    assert plan.digest == applied.digest == adapted.digest == again.digest
    assert plan.order == applied.order.names
    assert torch.equal(applied.tree(x), adapted.tree(x))
    modules = {id(m) for m in applied.adapters["a"].modules.values()}
    assert modules.isdisjoint(id(m) for m in again.adapters["a"].modules.values())


def test_a_plan_on_an_adapted_model_is_for_the_new_members(small: Small, tmp_path: Path) -> None:
    a, b, c = stack(tmp_path)
    plan = resolve(small.adapt(a, b), c)
    assert plan.order == ("a", "b", "c")
    assert [spec.name for spec in plan.specs] == ["c"]
    assert plan.apply(small.adapt(b, a)).digest == small.adapt(c, b, a).digest
    with pytest.raises(InarchError) as caught:
        plan.apply(small)
    assert caught.value.code == "IA802"
    assert "other adapters" in caught.value.why


def changed_weight(small: Small, _folder: Path) -> str:
    small.tree.head.weight.data[0, 0] += 1
    return "fingerprint differs"


def changed_file(_small: Small, folder: Path) -> str:
    tensors = load_file(folder / "a.safetensors")
    tensors["w"][3, 3] += 1
    save_file(tensors, folder / "a.safetensors")
    return "the file of `a` has other content"


def gone_file(_small: Small, folder: Path) -> str:
    (folder / "b.safetensors").unlink()
    return "the file of `b` is gone"


def changed_version(_small: Small, _folder: Path) -> str:
    inarch.adapters.graft.index().models["small"].version = "1.3"
    return "inarch-small was 1.2, and is 1.3"


@pytest.mark.parametrize("change", [changed_weight, changed_file, gone_file, changed_version])
def test_a_stale_plan_is_refused_with_what_changed(
    small: Small, tmp_path: Path, change: Callable[[Small, Path], str]
) -> None:
    plan = resolve(small, *stack(tmp_path))
    told = change(small, tmp_path)
    before = state(small)
    with pytest.raises(InarchError) as caught:
        plan.apply(small)
    assert caught.value.code == "IA802"
    assert told in caught.value.why
    assert unchanged(small, before)


def test_all_that_changed_is_told_at_once(small: Small, tmp_path: Path) -> None:
    plan = resolve(small, *stack(tmp_path))
    facts = [f(small, tmp_path) for f in (changed_weight, changed_file, gone_file)]
    with pytest.raises(InarchError) as caught:
        plan.apply(small)
    assert all(fact in caught.value.why for fact in facts)


class Broken(Exception):
    pass


STEPS = [
    (inarch.adapters.graft, "open_adapter"),
    (inarch.adapters.graft, "load_object"),
    (inarch.adapters.graft, "materialise"),
    (inarch.adapters.graft, "modules_of"),
    (inarch.adapters.model, "arranged"),
    (inarch.adapters.model, "merged"),
    (inarch.adapters.model, "by_tree"),
    (inarch.adapters.model, "tell"),
]


@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize(("module", "name"), STEPS)
def test_whichever_step_fails_the_model_is_as_it_was(
    small: Small,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    nth: int,
    x: Tensor,
) -> None:
    plan, before, calls = resolve(small, *stack(tmp_path)), state(small), itertools.count(1)
    forms = {n: c.form for n, c in small.tree.named_modules() if hasattr(c, "form")}
    expected, real = small.tree(x), getattr(module, name)

    def failing(*args: Any, **options: Any) -> Any:
        if next(calls) == nth:
            raise Broken
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, failing)
        try:
            plan.apply(small)
        except Broken:
            pass
        else:
            assert next(calls) <= nth  # the step is taken fewer times than that
    assert unchanged(small, before)
    assert small.adapters == ()
    assert {n: c.form for n, c in small.tree.named_modules() if hasattr(c, "form")} == forms
    assert torch.equal(small.tree(x), expected)
    assert plan.apply(small).digest == plan.digest


def test_a_file_that_vanishes_halfway_leaves_nothing(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, before = resolve(small, *stack(tmp_path)), state(small)
    real = inarch.adapters.graft.materialise

    def vanishing(*args: Any) -> Any:
        (tmp_path / "b.safetensors").unlink(missing_ok=True)
        return real(*args)

    monkeypatch.setattr(inarch.adapters.graft, "materialise", vanishing)
    with pytest.raises(InarchError) as caught:
        plan.apply(small)
    assert caught.value.code == "IA201"
    assert unchanged(small, before)
    assert small.adapters == ()


def test_the_proof_states_operations_bytes_and_shapes(small: Small, tmp_path: Path) -> None:
    proof = resolve(small, *stack(tmp_path)).proof
    assert proof is not None
    [run] = proof.runs
    assert run.inputs == {"x": "float32 [4, 6]"}
    assert run.outputs == run.before == ["float32 [4, 6]"]
    # Each of the three: a product, tanh, the strength, and the addition or product that joins it.
    assert run.operations - run.operations_before == 3 * 4
    assert proof.adapter_bytes == dict.fromkeys("abc", 4 * WIDTH * WIDTH)
    assert proof.base_bytes == sum(p.numel() * 4 for p in small.tree.parameters())
    assert proof.needed == 3 * 4 * WIDTH * WIDTH + run.activations
    assert run.activations >= 2 * 4 * 4 * WIDTH
    assert proof.free is not None
    assert proof.free > proof.needed
    assert not proof.unproved


def test_an_output_that_changes_unsaid_is_refused_and_one_that_was_promised_is_stated(
    small: Small, installed: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wider(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, x], -1)

    monkeypatch.setattr("stacks.Term", Wider)
    with pytest.raises(InarchError) as caught:
        resolve(small, made("a", "after head"))
    assert caught.value.code == "IA805"
    assert "float32 [4, 6], and is float32 [4, 12]" in caught.value.why
    installed(wide={"changes": "twice as many numbers"})
    proof = resolve(small, made("a", "after head", use="wide")).proof
    assert proof is not None
    assert proof.changes == ["a: twice as many numbers"]
    assert proof.runs[0].outputs == ["float32 [4, 12]"]


def test_a_patched_model_that_does_not_run_is_refused_with_the_place(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stacks.Term", lambda: nn.Linear(5, 5))
    with pytest.raises(InarchError) as caught:
        resolve(small, made("a", f"add {FC}"))
    assert caught.value.code == "IA807"
    assert FC.rpartition(".")[2] in caught.value.why


def test_an_input_without_an_example_is_said_to_be_unproved(small: Small) -> None:
    proof = resolve(small, made("a", "use head hint")).proof
    assert proof is not None
    assert proof.runs == []
    assert proof.unproved == ["nobody gives an example of the input hint"]


def test_more_memory_than_there_is_is_refused(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inarch.resolve.proof.free_bytes", lambda _device: 100)
    with pytest.raises(InarchError) as caught:
        resolve(small, made("a", f"add {FC}"))
    assert caught.value.code == "IA806"


def test_problems_of_fit_and_of_order_are_refused_together(small: Small) -> None:
    with pytest.raises(Refused) as caught:
        resolve(small, made("a", "add no.where"), made("b", f"add {FC}"), made("c", f"scale {FC}"))
    assert [problem.code for problem in caught.value.problems] == ["IA110", "IA407"]


def test_declarations_about_unknown_ids_are_findings(
    small: Small, installed: Callable[..., Any]
) -> None:
    installed(picky={"after": ["lroa"], "distribution": "inarch-picky"}, lora={})
    [finding] = resolve(small, made("a", f"add {FC}", use="picky")).findings
    assert (finding.code, finding.distribution) == ("IA812", "inarch-picky")
    assert finding.remedy == "did you mean lora?"


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"schema": 9}'])
def test_what_is_no_plan_is_said_so(text: str) -> None:
    with pytest.raises(InarchError) as caught:
        Plan.from_json(text)
    assert caught.value.code == "IA803"


def test_an_empty_stack_is_a_plan(small: Small, x: Tensor) -> None:
    plan = resolve(small)
    jsonschema.validate(json.loads(plan.to_json()), schema())
    assert plan.order == ()
    assert torch.equal(plan.apply(small).tree(x), small.tree(x))


def test_a_scale_of_zero_is_a_plan(small: Small, x: Tensor) -> None:
    plan = resolve(small, made("a", f"add {FC}", scale=0))
    assert torch.equal(plan.apply(small).tree(x), small.tree(x))
