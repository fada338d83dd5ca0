"""The kit passes what it should and fails what it should: scaffolds, with and without mistakes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from inarch.cli.new import new

# A mistake, what is written instead of what, and the test that must notice.
MISTAKES = {
    "begins": ("zeros_(self.gain)", "ones_(self.gain)", "an_untrained_one_changes_no_output_bit"),
    "reads": (
        'reads=(f"{site.address}.weight",),',
        "",
        "it_reads_only_weights_it_says_it_reads",
    ),
    "base": (
        "nn.init.zeros_(self.gain)",
        "nn.init.zeros_(self.gain); self.base[0].weight.data.mul_(1.01)",
        "dropping_it_leaves_every_base_bit_name_and_module",
    ),
    "thaws": (
        "nn.init.zeros_(self.gain)",
        "nn.init.zeros_(self.gain); self.base[0].requires_grad_(True)",
        "only_its_parameters_take_gradients",
    ),
    "rounds": (
        'e.get_parameter("gain").detach()',
        'e.get_parameter("gain").detach().half()',
        "saved_and_loaded_it_gives_the_same_bits",
    ),
    "frozen": (
        "strength = self.scale if torch.compiler.is_compiling() else self.strength",
        "strength = self.strength",
        "compiled_whole_it_gives_the_same_and_another_scale_compiles_nothing",
    ),
    "named": (
        "targets = self.options.targets",
        'targets = self.options.targets[: 0 if self.name == "lora" else 1]',
        "any_identifier_may_be_its_name",
    ),
    "detached": (
        "(self.gain * strength)",
        "(self.gain.detach() * strength)",
        "every_parameter_of_it_is_reached_by_a_gradient",
    ),
    "steep": (
        "(self.gain * strength)",
        "((2 * self.gain - self.gain.detach()) * strength)",
        "gradients_of_its_modules_are_those_of_finite_differences",
    ),
    "aliased": (
        "self.base = (site,)",
        "self.base = _Weak(site)",
        "a_copy_of_its_trees_is_equal_and_independent",
    ),
    "halved": (
        "return self.gain.float()[:, None]",
        "return 0.5 * self.gain.float()[:, None]",
        "merged_equals_unmerged_and_twice_is_once",
    ),
    "wide": (
        "* (self.gain * strength)",
        "* (self.gain.float() * strength)",
        "in_bfloat16_it_takes_the_base_s_dtype",
    ),
    "remembers": (
        "strength = self.scale if",
        "self.calls = getattr(self, 'calls', 0) + 1; x = x + 1e-3 * self.calls\n"
        "        strength = self.scale if",
        "it_gives_the_same_bits_each_time",
    ),
    "careless": (
        "sites.find(targets, modules=True)",
        "[s for s in sites.all.values() if s.address.endswith('up_proj')]",
        "one_target_that_matches_nothing_is_refused",
    ),
}
WEAK = """

class _Weak(tuple):
    def __new__(cls, site):
        return super().__new__(cls, (site,))

    def __deepcopy__(self, memo):
        return self
"""


def scaffold(folder: Path, kind: str, name: str) -> Path:
    """A package of `inarch new`, installed as pip would list it."""
    done = CliRunner().invoke(new, [kind, name, "--in", str(folder)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    package = folder / f"inarch-{name.replace('_', '-')}"
    source = package / "src" / f"inarch_{name}"
    info = folder / "site" / f"inarch_{name}-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: inarch-{name}\nVersion: 0.1.0\n")
    project = (package / "pyproject.toml").read_text()
    points = re.findall(r'\[project.entry-points."(.+)"\]\n(\w+) = "(.+)"', project)
    (info / "entry_points.txt").write_text("".join(f"[{g}]\n{n} = {v}\n" for g, n, v in points))
    os.symlink(source, folder / "site" / source.name)
    return package


def on_the_plain_model(package: Path) -> None:
    """Leave out the families that happen to be installed: it is the kit that is tested."""
    [test] = (package / "tests").glob("test_*.py")
    line = "    mergeable = True\n"
    test.write_text(test.read_text().replace(line, f'{line}    families = ("plain",)\n'))


def run(folder: Path, *arguments: str) -> str:
    environment = dict(os.environ) | {
        "PYTHONPATH": str(folder / "site"),
        "INARCH_CACHE_DIR": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    options = ["-q", "-p", "no:cacheprovider", "--tb=line", "-rfE", "--import-mode=importlib"]
    command = [sys.executable, "-m", "pytest", *options, "--rootdir", str(folder), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)
    return done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_the_tests_of_a_scaffold_pass_unedited(tmp_path: Path, kind: str) -> None:
    package = scaffold(tmp_path, kind, f"my_{kind}")
    if kind == "adapter":
        on_the_plain_model(package)
    text = run(tmp_path, str(package / "tests"))
    assert re.search(r"^\d+ passed", text.splitlines()[-1]), text[-3000:]


def test_each_mistake_is_noticed_by_the_test_that_is_about_it(tmp_path: Path) -> None:
    wanted: set[str] = set()
    for name, (old, wrong, test) in MISTAKES.items():
        package = scaffold(tmp_path, "adapter", name)
        on_the_plain_model(package)
        source = package / "src" / f"inarch_{name}" / "adapter.py"
        text = source.read_text()
        assert text.count(old) == 1, (name, old)
        source.write_text(text.replace(old, wrong) + (WEAK if name == "aliased" else ""))
        wanted.add(f"Test{name.capitalize()}::test_{test}")
    chosen = " or ".join(
        f"(Test{name.capitalize()} and {test})" for name, (_, _, test) in MISTAKES.items()
    )
    text = run(tmp_path, "-k", chosen, *(str(p) for p in tmp_path.glob("inarch-*/tests")))
    failed = set(re.findall(r"^(?:FAILED|ERROR) \S+?::(Test\w+::test_\w+)", text, re.M))
    assert wanted - failed == set(), text[-3000:]
