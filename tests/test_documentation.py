"""What the documentation says is what happens."""

from __future__ import annotations

import doctest
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
VOICES = ROOT / "plugins" / "smollm2_voices" / "README.md"


@pytest.mark.parametrize("page", ["how-it-works.md"])
def test_a_page_prints_what_it_shows(page: str) -> None:
    failed, attempted = doctest.testfile(str(ROOT / "docs" / page), module_relative=False)
    assert attempted > 5
    assert failed == 0


def test_every_link_within_the_repository_leads_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/*/README.md")]:
        prose = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.S)
        for target in re.findall(r"\]\(([^)#:]+)\)", prose):
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


def consoles(page: Path) -> list[tuple[str, str]]:
    """The commands a page shows with what they print."""
    found: list[tuple[str, str]] = []
    for block in re.findall(r"```console\n(.*?)```", page.read_text("utf-8"), re.S):
        for command, printed in re.findall(r"^\$ (.+)\n((?:(?!\$ ).*\n?)*)", block, re.M):
            found.append((command, printed.strip()))
    return found


def printed(command: str, folder: Path) -> str:
    words = shlex.split(command)
    assert words[0] == "inarch"
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, capture_output=True, text=True, check=False
    )
    return (done.stdout + done.stderr).strip()


def test_the_refusal_in_the_readme_is_what_a_typo_in_its_stack_gets(tmp_path: Path) -> None:
    stack = next(s for s in re.findall(r"```toml\n(.*?)```", README, re.S) if "[[adapter]]" in s)
    (tmp_path / "stack.toml").write_text(re.sub(r"(?m)^weights", "weight", stack))
    command, shown = consoles(ROOT / "README.md")[0]
    assert printed(command, tmp_path) == shown


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


@pytest.mark.slow
@pytest.mark.xdist_group("smollm2")
@pytest.mark.parametrize(("command", "shown"), consoles(VOICES))
def test_the_voices_answer_as_their_page_shows(command: str, shown: str, tmp_path: Path) -> None:
    assert printed(command, tmp_path) == shown


@pytest.mark.slow
@pytest.mark.xdist_group("smollm2")
def test_the_demonstration_prints_what_the_readme_shows() -> None:
    shown = re.search(r"gives the base back untouched:\n\n```text\n(.*?)```", README, re.S)
    assert shown is not None
    demo = [sys.executable, ROOT / "examples" / "demo.py"]
    done = subprocess.run(demo, capture_output=True, text=True, check=True)
    seconds = re.compile(r"in \d+\.\d s")
    assert seconds.sub("in 0.0 s", done.stdout.strip()) == seconds.sub("in 0.0 s", shown[1].strip())


def test_no_page_has_a_place_left_to_fill() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/*/README.md")]:
        assert not re.search(r"@[A-Z]+@|(?m:^@@$)", page.read_text("utf-8")), page
