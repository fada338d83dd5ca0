"""Every message of the resolver, whole, as `messages.txt` shows it.

`INARCH_WRITE_MESSAGES=1 pytest core/tests/resolve/test_messages.py` writes the file anew; read
what changed before it is committed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stacks import made
from test_plan import FC, Small, stack
from torch import nn

import inarch
from inarch.adapters import Model
from inarch.errors import InarchError
from inarch.resolve import Plan, resolve
from inarch.resolve.check import check
from inarch.resolve.lock import Lock, LockedFile, LockedModel, changed, read_lock, stale

GOLDEN = Path(__file__).parent / "messages.txt"
Installed = Callable[..., Any]


def undecided(model: Model, installed: Installed, folder: Path) -> None:
    model.adapt(made("lora", f"add {FC}"), made("gains", f"scale {FC}", "scale head"))


def undecided_in_a_file(model: Model, installed: Installed, folder: Path) -> None:
    installed(lora={}, ia3={})
    (folder / "stack.toml").write_text(
        f'[[adapter]]\nuse = "lora"\noptions = {{ do = ["add {FC}"] }}\n'
        f'[[adapter]]\nuse = "ia3"\noptions = {{ do = ["scale {FC}"] }}\n'
    )
    model.adapt(inarch.load_stack(folder / "stack.toml"))


def only_one_order_works(model: Model, installed: Installed, folder: Path) -> None:
    model.adapt(made("new", f"replace {FC}"), made("lora", f"add {FC}"))


def the_order_that_does_not_work(model: Model, installed: Installed, folder: Path) -> None:
    model.adapt(made("new", f"replace {FC}"), made("lora", f"add {FC}", before="new"))


def nothing_would_be_left(model: Model, installed: Installed, folder: Path) -> None:
    model.adapt(made("new", "replace layers.0"), made("lora", f"add {FC}"))


def one_name_twice(model: Model, installed: Installed, folder: Path) -> None:
    model.adapt(made("a", "provide seen"), made("b", "provide seen"))


def a_circle(model: Model, installed: Installed, folder: Path) -> None:
    installed(ia3={"after": ["lora"]}, lora={})
    lora = made("lora", "add head", use="lora", after="ia3")
    model.adapt(lora, made("ia3", "scale head", use="ia3"))


def declared_company(model: Model, installed: Installed, folder: Path) -> None:
    (folder / "inarch.toml").write_text(
        'schema = 1\n[[adapter]]\nid = "picky"\nrequires = ["lora"]\nconflicts = ["other"]\n'
        'models = { small = ">=2" }\n'
    )
    installed(
        picky={
            "requires": ["lora"],
            "conflicts": ["other"],
            "models": {"small": ">=2"},
            "manifest": str(folder / "inarch.toml"),
        }
    )
    model.adapt(made("a", "add head", use="picky"), made("b", "add head", use="other"))


def a_name_that_is_none(model: Model, installed: Installed, folder: Path) -> None:
    model.adapt(made("pirate", "add head"), made("b", "add head", after="pirat"))


def kinds_unsaid(model: Model, installed: Installed, folder: Path) -> None:
    installed(quiet={"kinds": ["add"], "distribution": "inarch-quiet"})
    model.adapt(made("a", "add head", "scale group", use="quiet"))


def stale_plan(model: Model, installed: Installed, folder: Path) -> None:
    plan = resolve(model, *stack(folder), proof=False)
    model.tree.head.weight.data[0, 0] += 1
    (folder / "b.safetensors").unlink()
    plan.apply(model)


def no_plan(model: Model, installed: Installed, folder: Path) -> None:
    Plan.from_json("{}")


def outputs_change(model: Model, installed: Installed, folder: Path) -> None:
    class Flat(nn.Module):
        def forward(self, x: Any) -> Any:
            return x.double().sum(-1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stacks.Term", Flat)
        resolve(model, made("a", "after head"))


def no_memory(model: Model, installed: Installed, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inarch.resolve.proof.free_bytes", lambda _device: 100)
        resolve(model, made("a", "add head"))


def does_not_run(model: Model, installed: Installed, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stacks.Term", lambda: nn.Linear(5, 5))
        resolve(model, made("a", f"add {FC}"))


def stale_lock(model: Model, installed: Installed, folder: Path) -> None:
    (folder / "base.bin").write_bytes(b"1234")
    lock = Lock(digest="d", model=LockedModel(source="small"))
    lock.model.file = [
        LockedFile(path="base.bin", bytes=3, sample="s"),
        LockedFile(path="gone.bin", bytes=3, sample="s"),
    ]
    facts = changed(lock, inarch.Stack(["plain"], "small"), folder)
    raise stale(folder / "stack.lock", facts, folder / "stack.toml")


def no_lock(model: Model, installed: Installed, folder: Path) -> None:
    (folder / "stack.lock").write_text("digest = 3\n")
    read_lock(folder / "stack.lock")


def no_role(model: Model, installed: Installed, folder: Path) -> None:
    listed = installed(images={"roles": ["skip.*"], "manifest": "inarch.toml"})
    report = check(inarch.Stack(["images"], "small"), listed)
    raise report.problems[0]


CASES = [
    undecided,
    undecided_in_a_file,
    only_one_order_works,
    the_order_that_does_not_work,
    nothing_would_be_left,
    one_name_twice,
    a_circle,
    declared_company,
    a_name_that_is_none,
    kinds_unsaid,
    stale_plan,
    no_plan,
    outputs_change,
    no_memory,
    does_not_run,
    stale_lock,
    no_lock,
    no_role,
]


def shown() -> dict[str, str]:
    parts = (
        re.split(r"^## (\w+)\n", GOLDEN.read_text("utf-8"), flags=re.M) if GOLDEN.exists() else []
    )
    return dict(zip(parts[1::2], map(str.strip, parts[2::2]), strict=True))


def message(case: Callable[..., None], model: Model, installed: Installed, folder: Path) -> str:
    with pytest.raises(InarchError) as caught:
        case(model, installed, folder)
    return str(caught.value).replace(str(folder), "FOLDER")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_a_message_is_as_it_is_shown(
    case: Callable[..., None], base: Model, installed: Installed, tmp_path: Path
) -> None:
    text = message(case, Small(base.trees, family="small"), installed, tmp_path)
    if os.environ.get("INARCH_WRITE_MESSAGES"):
        kept = {**shown(), case.__name__: text}
        names = [c.__name__ for c in CASES if c.__name__ in kept]
        GOLDEN.write_text("\n".join(f"## {n}\n\n{kept[n]}\n" for n in names), "utf-8")
    assert text == shown()[case.__name__]


def test_every_message_that_is_shown_is_tested() -> None:
    assert list(shown()) == [case.__name__ for case in CASES]


def test_no_line_of_a_message_is_wider_than_a_page() -> None:
    assert max(len(line) for text in shown().values() for line in text.splitlines()) <= 110
