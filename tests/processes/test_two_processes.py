"""Two gloo processes equal one: forward, gradients of every layer, and what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from scenes import SPLITTABLE, adapted, base, content, examples, ids, loss_of, named
from starting import asked_of

import inarch
from inarch.distribute import load_tensors
from inarch.distribute.checkpoint import shapes_in
from inarch_training import train

GROUPED, TIED, MISTRAL = "grouped queries", "tied, biased, long", "mistral's window"
RAN = [
    *((GROUPED, stack, "tensor") for stack in SPLITTABLE),
    (TIED, "none", "tensor"),
    (TIED, "stack", "tensor"),
    (TIED, "merged", "tensor"),
    *((TIED, stack, "fsdp") for stack in ("none", "stack", "prefix")),
    (GROUPED, "stack", "fsdp"),
    (f"{GROUPED} packed", "lora", "fsdp"),
    (f"{TIED} packed", "stack", "tensor"),
    (GROUPED, "stack", "replicate"),
]
REFUSED = [
    (MISTRAL, "lora", "tensor", "IA880", "1 heads"),
    (GROUPED, "taps", "tensor", "IA881", "gate"),
    (GROUPED, "lora", "sideways", "IA880", "sideways"),
]
FEWER = [
    (GROUPED, "several", "tensor"),
    (GROUPED, "several", "replicate"),
    (GROUPED, "merged", "tensor"),
    (GROUPED, "several", "fsdp"),
]
ALIKE = [(f, "usual", p) for f in ("clip", "stable-diffusion") for p in ("fsdp", "tensor")]
INSIDE = [("stable-diffusion", "controlnet", plan) for plan in ("fsdp", "tensor")]
GENERATED = [(GROUPED, "stack", "tensor"), (TIED, "prefix", "tensor")]
TRAINED = [
    (GROUPED, "once", "tensor"),
    (GROUPED, "dropped", "replicate then tensor"),
    (GROUPED, "dropped", "tensor then fsdp then tensor"),
]
STRANGE = [(GROUPED, "lora", plan) for plan in ("tensor", "replicate")]

pytestmark = pytest.mark.xdist_group("two processes")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="session")
def found(folder: Path) -> list[dict[str, Any]]:
    tasks = [
        *(("fewer", *one) for one in FEWER),  # first: FSDP2 in a process is of all of its models
        *(("ran", *one) for one in RAN),
        *(("refused", *one[:3]) for one in REFUSED),
        *(("generated", *one) for one in GENERATED),
        *(("alike", *one) for one in ALIKE),
        ("unsaved", GROUPED, "formless", "tensor"),
        *(("inside", *one) for one in INSIDE),
        *(("trained", *one) for one in TRAINED),
        *(("strange", *one) for one in STRANGE),
    ]
    return asked_of(2, tasks, folder)


def name_of(one: tuple[str, ...]) -> str:
    return "-".join(one[:3])


@pytest.fixture(params=RAN, ids=name_of)
def scene(request: pytest.FixtureRequest) -> tuple[str, str, str]:
    return request.param


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-5, atol=1e-5 * max(1.0, other.abs().max().item()))


def test_two_processes_give_the_logits_and_gradients_of_one(
    scene: tuple[str, str, str], found: list[dict[str, Any]]
) -> None:
    label, stack, plan = scene
    model, rows = adapted(label, stack), ids()
    for tree in model.trees.values():
        tree.requires_grad_(True)
    logits = model(rows)
    loss_of(logits, rows).backward()
    ours = [one[f"ran-{name_of(scene)}"] for one in found]
    given = [one["logits"] for one in ours]
    assert close(torch.cat(given) if plan != "tensor" else given[0], logits)
    expected = dict(named(model))
    for one in ours:
        assert list(one["gradients"]) == list(ours[0]["gradients"])
        assert set(one["gradients"]) == set(expected)
        for name, parameter in expected.items():
            gradient = parameter.grad
            gradient = torch.zeros_like(parameter) if gradient is None else gradient
            assert close(one["gradients"][name], gradient), name
        gradients = [p.grad for p in expected.values() if p.grad is not None]
        assert close(one["norm"], torch.nn.utils.get_total_norm(gradients))
        assert one["late"] == ["IA108", "IA108"]


def test_a_process_lets_go_of_the_layers_it_has_a_part_of(
    scene: tuple[str, str, str], found: list[dict[str, Any]]
) -> None:
    layers = 0 if scene[2] == "tensor" else 4
    assert [one[f"ran-{name_of(scene)}"]["kept"] for one in found] == [layers, layers]


def test_what_two_save_is_the_file_that_one_saves(
    scene: tuple[str, str, str], found: list[dict[str, Any]], folder: Path, tmp_path: Path
) -> None:
    assert found
    model = adapted(*scene[:2])
    theirs = folder / f"ran-{name_of(scene)}"
    for member in model.adapters:
        if member.merged:
            continue
        model.save_adapter(member.name, tmp_path / member.name)
        files = sorted(f.name for f in (tmp_path / member.name).iterdir())
        assert sorted(f.name for f in (theirs / member.name).iterdir()) == files
        for name in files:
            one, other = (path / member.name / name for path in (tmp_path, theirs))
            assert content(one) == content(other), name


def test_a_checkpoint_of_two_is_read_by_one(
    scene: tuple[str, str, str], found: list[dict[str, Any]], folder: Path
) -> None:
    assert found
    expected = dict(named(adapted(*scene[:2])))
    path = folder / f"ran-{name_of(scene)}" / "dcp"
    assert shapes_in(path) == {name: p.shape for name, p in expected.items()}
    read = {name: torch.full_like(p.detach(), torch.nan) for name, p in expected.items()}
    load_tensors(read, path)
    for name, parameter in expected.items():
        assert torch.equal(read[name], parameter), name


@pytest.mark.parametrize("case", REFUSED, ids=name_of)
def test_what_cant_be_split_is_refused_before_anything_is(
    case: tuple[str, ...], found: list[dict[str, Any]]
) -> None:
    *_, code, told = case
    for one in found:
        refusal = one[f"refused-{name_of(case)}"]
        assert refusal["code"] == code
        assert told in refusal["text"]
        assert refusal["untouched"]


@pytest.mark.parametrize("case", GENERATED, ids=name_of)
def test_two_processes_generate_the_tokens_of_one(
    case: tuple[str, str, str], found: list[dict[str, Any]]
) -> None:
    model = adapted(*case[:2])
    steps = model.generate_ids(ids().tolist(), max_new_tokens=6, stop=frozenset())
    tokens = list(steps)
    assert [one[f"generated-{name_of(case)}"]["tokens"] for one in found] == [tokens, tokens]


@pytest.mark.parametrize("case", FEWER, ids=name_of)
def test_adapters_leave_a_model_of_two_processes_but_where_weights_hold_them(
    case: tuple[str, str, str], found: list[dict[str, Any]]
) -> None:
    model = adapted(*case[:2])
    for one in found:
        result = one[f"fewer-{name_of(case)}"]
        for name, given in result["without"].items():
            if case[2] == "fsdp" or model.adapters[name].merged:
                assert given == "IA108"
            else:
                assert close(given, model.without(name)(ids()))
        assert ("`fsdp` generates no text" in result["generates"]) == (case[2] == "fsdp")
        if case[1] == "several":
            assert result["together"] == [case[2] != "fsdp"] * 14


@pytest.mark.parametrize("case", ALIKE, ids=name_of)
def test_every_tree_of_other_families_runs_as_in_one_process(
    case: tuple[str, str, str], found: list[dict[str, Any]]
) -> None:
    for one in found:
        result = one[f"alike-{name_of(case)}"]
        assert result["far"] < 1e-5
        assert (result["split"] > 20) == (case[2] == "tensor")


@pytest.mark.parametrize("case", INSIDE, ids=name_of)
def test_adapters_of_a_tree_that_an_adapter_brings_are_saved_whole(
    case: tuple[str, str, str], found: list[dict[str, Any]]
) -> None:
    for one in found:
        result = one[f"inside-{name_of(case)}"]
        assert result["names"] == ["adapter_config.json", "adapter_model.safetensors"]
        assert result["same"] == [True, True]


@pytest.mark.parametrize("case", TRAINED, ids=name_of)
def test_processes_that_share_layers_train_one_adapter_whatever_they_went_on_from(
    case: tuple[str, str, str], found: list[dict[str, Any]]
) -> None:
    first, second = (one[f"trained-{name_of(case)}"] for one in found)
    assert first["losses"] == second["losses"]
    for name, parameter in first["parameters"].items():
        assert torch.equal(parameter, second["parameters"][name]), name


def test_an_adapter_that_lies_in_one_of_the_processes_is_trained(
    found: list[dict[str, Any]], tmp_path: Path
) -> None:
    model = adapted(GROUPED, "once")
    settings: dict[str, Any] = {"steps": 2, "batch_size": 3, "clip": 0.1, "schedule": "constant"}
    losses = train(model, examples(), adapter="mine", out=tmp_path, **settings).losses
    result = found[1][f"trained-{name_of(TRAINED[0])}"]
    assert result["losses"] == pytest.approx(losses, abs=1e-5)
    for name, parameter in model.adapters["mine"].parameters().items():
        assert close(result["parameters"][name], parameter), name


@pytest.mark.parametrize("case", STRANGE, ids=name_of)
def test_processes_of_other_weights_or_examples_are_refused_in_all(
    case: tuple[str, str, str], found: list[dict[str, Any]]
) -> None:
    for one in found:
        result = one[f"strange-{name_of(case)}"]
        assert result["told"] == [
            "IA880 the processes have other weights",
            "IA601 the processes have other examples",
        ]
        assert not result["left"]


def test_what_cant_be_saved_is_refused_in_both(found: list[dict[str, Any]]) -> None:
    name = f"unsaved-{name_of((GROUPED, 'formless', 'tensor'))}"
    assert [one[name]["code"] for one in found] == ["IA408", "IA408"]


def test_a_model_is_not_sharded_without_processes() -> None:
    with pytest.raises(inarch.InarchError, match="IA880"):
        inarch.shard(adapted(GROUPED, "lora"), "tensor")


@pytest.mark.parametrize("stack", ["lora", "dora", "pissa", "loha", "lokr"])
def test_peft_loads_what_two_processes_saved(
    stack: str, found: list[dict[str, Any]], folder: Path
) -> None:
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    model = adapted(GROUPED, stack)
    [member] = model.adapters
    config = transformers.LlamaConfig(**{**model.sites.settings, "attn_implementation": "sdpa"})
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.load_state_dict(base(GROUPED).state_dict())
    name = f"ran-{name_of((GROUPED, stack, 'tensor'))}"
    theirs = peft.PeftModel.from_pretrained(theirs, folder / name / member.name)
    with torch.no_grad():
        logits = theirs(ids()).logits
    assert close(found[0][name]["logits"], logits)
