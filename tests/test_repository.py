"""What CONTRIBUTING promises of the code: where imports point, sizes, codes, skips."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inarch.codes import CODES

ROOT = Path(__file__).parent.parent
CORE = ROOT / "core" / "src" / "inarch"
PACKAGES = sorted(
    f.parent
    for kind in ("foundation_models", "plugins")
    for f in ROOT.glob(f"{kind}/*/pyproject.toml")
)
CODE = re.compile(r"\bIA\d{3}\b")

# What each part of core may import; a part that isn't listed stands above all of these.
BELOW = {
    "errors": set[str](),
    "codes": set[str](),
    "naming": {"errors"},
    "layout": {"errors"},
    "identity": set[str](),
    "tree": {"errors", "naming"},
    "plugins": {"errors"},
    "stack": {"errors", "plugins"},
    "weights": {"errors", "identity", "layout", "plugins", "tree"},
    "adapters": {"errors", "identity", "naming", "plugins", "tree", "stack", "weights"},
}
BELOW["resolve"] = {*BELOW["adapters"], "adapters", "layout"}
BELOW["nn"] = BELOW["adapters"] | {"adapters"}
BELOW["distribute"] = BELOW["nn"] | {"nn"}

# One file each that asks upwards, and what for.
UPWARDS = {
    ("errors.py", "plugins"): "a notebook shows an error as an installed package draws it",
    ("adapters/model.py", "resolve"): "`Model.adapt` is where a stack is resolved",
    (
        "adapters/inner.py",
        "resolve",
    ): "what is in an adapter's tree is a stack too",
    ("weights/checkpoint.py", "nn"): "a checkpoint gives its tokenizer",
}


def sources(folder: Path) -> list[Path]:
    """The Python files of a folder, without what tools and environments leave in it."""
    return [
        path
        for path in sorted(folder.rglob("*.py"))
        if not any(part.startswith(".") or part == "build" for part in path.relative_to(ROOT).parts)
    ]


def imported(path: Path) -> Iterator[str]:
    """The modules a file imports wherever it does, except for type checkers alone."""
    todo: list[ast.AST] = [ast.parse(path.read_text("utf-8"))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        todo += ast.iter_child_nodes(node)


def constants(path: Path) -> Iterator[str]:
    """The strings of a file that are no docstrings."""
    tree = ast.parse(path.read_text("utf-8"))
    spoken = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in spoken
        ):
            yield node.value


def manifest(package: Path) -> dict[str, Any]:
    [file] = package.glob("src/*/inarch.toml")
    return tomllib.loads(file.read_text("utf-8"))


@pytest.mark.parametrize("part", BELOW)
def test_imports_of_core_point_one_way(part: str) -> None:
    folder = CORE / part
    for path in sources(folder) if folder.is_dir() else [CORE / f"{part}.py"]:
        name = path.relative_to(CORE).as_posix()
        for module in imported(path):
            other = module.split(".")[1] if module.startswith("inarch.") else part
            allowed = other in BELOW[part] or other == part or (name, other) in UPWARDS
            assert allowed, f"{name} imports {module}, which stands above it"


def test_plugins_and_the_command_line_start_without_torch() -> None:
    files = [
        *sources(CORE / "plugins"),
        *sources(CORE / "cli"),
        CORE / "stack.py",
        CORE / "codes.py",
    ]
    names = [".".join(("inarch", *f.relative_to(CORE).with_suffix("").parts)) for f in files]
    script = "import importlib, sys\n"
    script += f"for name in {names!r}: importlib.import_module(name)\n"
    script += "print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.strip() == "[]"


def test_models_and_adapters_meet_in_roles_and_never_name_each_other() -> None:
    sides: dict[str, dict[str, set[str]]] = {"model": {}, "adapter": {}}
    for package in PACKAGES:
        for kind in sides:
            ids = {entry["id"] for entry in manifest(package).get(kind, [])}
            if ids:
                [file] = package.glob("src/*/inarch.toml")
                sides[kind][file.parent.name] = ids
    assert sides["model"]
    assert sides["adapter"]
    for kind, other in (("model", "adapter"), ("adapter", "model")):
        foreign = set(sides[other]) - set(sides[kind])
        ids = set().union(*(sides[other][name] for name in foreign))
        for package in PACKAGES:
            [file] = package.glob("src/*/inarch.toml")
            if file.parent.name not in sides[kind]:
                continue
            for path in sources(package / "src"):
                where = path.relative_to(ROOT)
                roots = {module.split(".")[0] for module in imported(path)}
                assert not roots & foreign, f"{where} imports {roots & foreign}"
                named = set(constants(path)) & ids
                assert not named, f"{where} names {named}"


def test_core_names_no_package_of_the_workspace() -> None:
    names = {file.parent.name for p in PACKAGES for file in p.glob("src/*/inarch.toml")}
    for path in sources(CORE):
        roots = {module.split(".")[0] for module in imported(path)}
        assert not roots & names, f"{path.name} imports {roots & names}"


def test_no_file_is_longer_than_a_person_reads_in_one_sitting() -> None:
    long = {  # about 400 is the rule, and one line more is no reason to tear a file apart
        str(path.relative_to(ROOT)): lines
        for path in sources(ROOT)
        if (lines := len(path.read_text("utf-8").splitlines())) > 420
    }
    assert not long


def codes_of(package: Path) -> dict[str, str]:
    return {entry["id"]: entry["summary"] for entry in manifest(package).get("code", [])}


@pytest.mark.parametrize("package", [CORE, *PACKAGES], ids=lambda p: p.name)
def test_every_code_is_registered_and_every_registered_code_is_raised(package: Path) -> None:
    own = CODES if package == CORE else codes_of(package)
    files = [
        f for f in sources(package if package == CORE else package / "src") if f.stem != "codes"
    ]
    # Core's codes are for everybody: IA210 is what a family says of a configuration.
    users = files + [f for p in PACKAGES for f in sources(p / "src") if package == CORE]
    raised = {code for f in users for text in constants(f) for code in CODE.findall(text)}
    known = set(CODES) | set(own) | {code for other in needed(package) for code in codes_of(other)}
    spoken = {code for f in files for code in CODE.findall(f.read_text("utf-8"))}
    unknown = sorted(spoken - known)
    assert not unknown, "codes nobody registered"
    unused = sorted(set(own) - raised)
    assert not unused, "registered codes nobody raises"


def needed(package: Path) -> list[Path]:
    """The packages of the workspace that one depends on, whose errors it may raise too."""
    if package == CORE:
        return []
    text = (package / "pyproject.toml").read_text("utf-8")
    wanted = {re.split(r"[<>=\[ ]", d)[0] for d in tomllib.loads(text)["project"]["dependencies"]}
    return [p for p in PACKAGES if f"inarch-{p.name.replace('_', '-')}" in wanted]


def test_every_refusal_says_one_thing_to_do() -> None:
    silent: list[str] = []
    for path in [*sources(CORE), *(f for p in PACKAGES for f in sources(p / "src"))]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("InarchError"):
                keys = {keyword.arg for keyword in node.keywords}
                if not keys & {"remedy", None}:
                    silent.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not silent, "an InarchError without a remedy"


def test_a_code_is_registered_once() -> None:
    seen: dict[str, str] = dict.fromkeys(CODES, "core")
    for package in PACKAGES:
        for code in codes_of(package):
            assert code not in seen, f"{code} is {package.name}'s and {seen[code]}'s"
            seen[code] = package.name


def skips() -> dict[str, set[str]]:
    """What tests are skipped for, a library they want or the reason given, and in which files."""
    found: dict[str, set[str]] = {}
    for path in sources(ROOT):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call) or "tests" not in path.parts:
                continue
            called = ast.unparse(node.func).split(".")[-1]
            words = [k.value for k in node.keywords if k.arg == "reason"] or node.args[:1]
            if called in ("importorskip", "skip", "skipif", "xfail") and words:
                text = ast.literal_eval(words[0])
                reason = text.split(".")[0] if called == "importorskip" else text
                found.setdefault(reason, set()).add(path.relative_to(ROOT).as_posix())
    return found


def test_every_skip_is_listed_with_the_condition_to_unskip_it() -> None:
    table = re.findall(r"^\| `(.+?)` \| (.+?) \|$", (ROOT / "tests" / "SKIPS.md").read_text(), re.M)
    listed = dict(table)
    assert len(listed) == len(table)
    assert all(condition.strip() for condition in listed.values())
    assert set(skips()) <= set(listed), "skips that tests/SKIPS.md does not list"
    assert set(listed) <= set(skips()), "tests/SKIPS.md lists what nothing is skipped for"
