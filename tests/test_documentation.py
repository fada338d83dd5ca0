"""What the documentation says is what happens."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize("page", ["how-it-works.md"])
def test_a_page_prints_what_it_shows(page: str) -> None:
    failed, attempted = doctest.testfile(str(ROOT / "docs" / page), module_relative=False)
    assert attempted > 5
    assert failed == 0


def test_every_link_within_the_repository_leads_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/*/README.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_table_of_packages_names_every_package() -> None:
    found = [*ROOT.glob("foundation_models/*"), *ROOT.glob("plugins/*"), ROOT / "core"]
    for folder in (f for f in found if (f / "pyproject.toml").is_file()):
        name = re.search(r'^name = "(.+)"', (folder / "pyproject.toml").read_text(), re.M)
        assert name is not None
        assert f"`{name.group(1)}`" in README


@pytest.mark.slow
@pytest.mark.xdist_group("smollm2")
def test_the_script_of_the_readme_runs_as_it_stands(tmp_path: Path) -> None:
    script = next(s for s in re.findall(r"```python\n(.*?)```", README, re.S) if "inarch.load" in s)
    shown = re.search(r"which prints\n\n```text\n(.*?)```", README, re.S)
    assert shown is not None
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout.strip() == shown.group(1).strip()


def steady(text: str) -> str:
    """Without what differs from one machine or release to the next."""
    text = re.sub(r"inarch-stack1:[0-9a-f]{64}", "DIGEST", text)
    return re.sub(r"of [\d,.]+ MiB free", "of FREE", text)


@pytest.mark.slow
@pytest.mark.xdist_group("smollm2")
def test_the_refused_stack_of_the_readme_is_refused_cured_planned_and_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = README.partition("## A stack that is refused")[2].partition("\n## ")[0]
    stack, console = re.findall(r"```(?:toml|console)\n(.*?)```", section, re.S)
    (tmp_path / "stack.toml").write_text(stack)
    monkeypatch.setenv("COLUMNS", "80")
    for part in re.split(r"^\$ inarch ", console, flags=re.M)[1:]:
        command, _, shown = part.partition("\n")
        done = subprocess.run(
            [sys.executable, "-m", "inarch", *command.split()],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
        )
        assert steady(done.stdout).split() == steady(shown).split(), command
        refused = "error[" in shown
        assert done.returncode == (1 if refused else 0), command
