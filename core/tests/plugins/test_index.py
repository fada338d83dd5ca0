"""The index: what is installed, from manifests alone, whatever else is broken."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from inarch.errors import InarchError
from inarch.plugins import index, load_object, locate_checkpoint, locate_weights

ADAPTER = """\
schema = 1

[[adapter]]
id = "{id}"
summary = "An adapter"
roles = ["attention.*"]
kinds = ["add"]
"""


def points(group: str, name: str, value: str) -> str:
    return f"[{group}]\n{name} = {value}\n"


def adapter_points(name: str, package: str) -> str:
    return points("inarch.adapters", name, f"{package}:Thing")


def settle(site: Path) -> None:
    """Let an hour go by, as installations mostly lie."""
    for path in (site, *site.rglob("*")):
        then = path.stat().st_mtime_ns - 3600 * 10**9
        os.utime(path, ns=(then, then))


def built() -> int:
    """How often the index was read anew, and not from its cache, by a look at it now."""
    import inarch.plugins.entry_points as found

    original = found.installed
    calls: list[int] = []

    def counted() -> Any:
        calls.append(1)
        return original()

    found.installed = counted
    try:
        fresh()
    finally:
        found.installed = original
    return len(calls)


def started(script: str) -> str:
    """What a script prints in a process that has the path of this one."""
    start = (
        "import sys; from pathlib import Path\n"
        "from inarch.plugins.index import _cached_index, index\n"
        f"sys.path[:] = {sys.path!r}\n"
    )
    command = [sys.executable, "-c", start + script]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def fresh() -> Any:
    from inarch.plugins.index import _cached_index

    _cached_index.cache_clear()
    return index()


def test_an_installed_adapter_is_listed_with_where_it_came_from(install: Any) -> None:
    folder = install("inarch-x", ADAPTER.format(id="x"), points=adapter_points("x", "inarch_x"))
    entry = index().adapters["x"]
    assert (entry.distribution, entry.version) == ("inarch-x", "1.0")
    assert entry.manifest == str(folder / "inarch.toml")
    assert index().findings == []


def test_listing_imports_no_plugin(install: Any) -> None:
    code = "raise RuntimeError('imported')"
    install("inarch-x", ADAPTER.format(id="x"), points=adapter_points("x", "inarch_x"), code=code)
    assert "x" in index().adapters
    assert "inarch_x" not in sys.modules


def test_a_plugin_that_fails_to_import_is_named_when_it_is_used(install: Any) -> None:
    code = "raise RuntimeError('broken inside')"
    install("inarch-x", ADAPTER.format(id="x"), points=adapter_points("x", "inarch_x"), code=code)
    with pytest.raises(InarchError) as caught:
        load_object("inarch.adapters", "x")
    assert caught.value.code == "IA309"
    assert "inarch-x" in caught.value.what
    assert "broken inside" in caught.value.why


def test_an_attribute_that_is_not_there_is_named(install: Any) -> None:
    install("inarch-x", ADAPTER.format(id="x"), points=adapter_points("x", "inarch_x"))
    with pytest.raises(InarchError) as caught:
        load_object("inarch.adapters", "x")
    assert (caught.value.code, "Thing" in caught.value.why) == ("IA309", True)
    sys.modules.pop("inarch_x", None)


@pytest.mark.parametrize(
    ("manifest", "code", "line", "said"),
    [
        ("schema = 1\n[[adapter]]\nid = 'x'\nsumary = 'y'\n", "IA302", 4, "summary"),
        ("schema = 1\n[[adapter]]\nsummary = 'y'\n", "IA302", None, "id"),
        ("schema = 1\n[[adapter]]\nid = 3\n", "IA302", 3, "int"),
        ("schema = 1\n[[adapter]]\nid = 'x'\nkinds = ['ad']\n", "IA302", 4, "ad"),
        ("schema = 2\n", "IA303", None, "schema 2"),
        ("schema = \n", "IA302", None, "no TOML"),
        ("[[adapter]]\nid = 'x'\n", "IA302", None, "schema"),
        (None, "IA304", None, "not where"),
    ],
)
def test_a_bad_manifest_is_a_finding_and_stops_nothing_else(
    install: Any, manifest: str | None, code: str, line: int | None, said: str
) -> None:
    install("inarch-bad", manifest)
    install("inarch-x", ADAPTER.format(id="x"), points=adapter_points("x", "inarch_x"))
    [finding] = index().findings
    assert (finding.code, finding.distribution) == (code, "inarch-bad")
    assert said in finding.what + finding.remedy
    if line is not None:
        assert finding.where.endswith(f":{line}")
    assert list(index().adapters) == ["x"]


def test_of_two_packages_with_one_id_the_first_by_name_is_used(install: Any) -> None:
    for name in ("inarch-b", "inarch-a"):
        package = name.replace("-", "_")
        install(name, ADAPTER.format(id="x"), points=adapter_points("x", package))
    assert index().adapters["x"].distribution == "inarch-a"
    [finding] = index().findings
    assert (finding.code, finding.distribution) == ("IA305", "inarch-b")


def test_manifest_and_entry_points_must_agree(install: Any) -> None:
    install("inarch-x", ADAPTER.format(id="x"), points=adapter_points("y", "inarch_x"))
    codes = [(f.code, f.distribution) for f in index().findings]
    assert codes == [("IA307", "inarch-x")] * 2


def test_a_package_without_code_is_found_and_its_weights_too(site: Path, install: Any) -> None:
    manifest = "schema = 1\n[[weights]]\nid = 'w'\nadapter = 'lora'\nmodel = 'llama'\npath = 'w'\n"
    folder = install("inarch-data", manifest)
    (folder / "__init__.py").unlink()
    with pytest.raises(InarchError) as caught:
        locate_weights("w")
    assert caught.value.code == "IA310"
    (folder / "w").mkdir()
    assert locate_weights("w") == folder / "w"


CHECKPOINT = """\
schema = 1
[[checkpoint]]
id = "tiny"
model = "llama"
package = "tiny-weights"
file = "tiny_weights/model.gguf"
install = "pip install tiny-weights"
"""


def test_a_checkpoint_that_is_not_installed_is_told_with_its_command(
    site: Path, install: Any
) -> None:
    install("inarch-x", CHECKPOINT)
    with pytest.raises(InarchError) as caught:
        locate_checkpoint("tiny")
    assert (caught.value.code, caught.value.remedy) == ("IA310", "pip install tiny-weights")
    (site / "tiny_weights").mkdir()
    (site / "tiny_weights" / "model.gguf").write_bytes(b"GGUF")
    assert locate_checkpoint("tiny") == site / "tiny_weights" / "model.gguf"
    with pytest.raises(InarchError) as caught:
        locate_checkpoint("tyni")
    assert (caught.value.code, "tiny" in caught.value.remedy) == ("IA308", True)


def test_the_cache_is_used_until_something_is_installed(site: Path, install: Any) -> None:
    install("inarch-x", ADAPTER.format(id="x"), points=adapter_points("x", "inarch_x"))
    settle(site)
    assert (built(), built()) == (1, 0)
    install("inarch-y", ADAPTER.format(id="y"), points=adapter_points("y", "inarch_y"))
    assert sorted(fresh().adapters) == ["x", "y"]
    settle(site)
    assert (built(), built()) == (1, 0)
    assert sorted(fresh().adapters) == ["x", "y"]


def test_what_changed_just_now_is_not_cached(site: Path, install: Any) -> None:
    install("inarch-x", ADAPTER.format(id="x"), points=adapter_points("x", "inarch_x"))
    tick = site.stat().st_mtime_ns
    assert started("print(*index().adapters)") == "x"
    install("inarch-y", ADAPTER.format(id="y"), points=adapter_points("y", "inarch_y"))
    os.utime(site, ns=(tick, tick))  # as where the file system's clock has not moved on
    assert started("print(*index().adapters)") == "x y"


def test_what_is_removed_or_upgraded_is_seen(site: Path, install: Any) -> None:
    for name in ("x", "y"):
        text = ADAPTER.format(id=name)
        install(f"inarch-{name}", text, points=adapter_points(name, f"inarch_{name}"))
    settle(site)
    assert sorted(fresh().adapters) == ["x", "y"]
    shutil.rmtree(site / "inarch_y-1.0.dist-info")
    shutil.rmtree(site / "inarch_y")
    assert list(fresh().adapters) == ["x"]
    settle(site)
    assert (built(), built()) == (1, 0)
    shutil.rmtree(site / "inarch_x-1.0.dist-info")
    shutil.rmtree(site / "inarch_x")
    newer = ADAPTER.format(id="x").replace("An adapter", "A newer one")
    points = adapter_points("x", "inarch_x")
    install("inarch-x", newer, points=points, version="2.0")
    entry = fresh().adapters["x"]
    assert (entry.version, entry.summary) == ("2.0", "A newer one")


def test_a_manifest_that_was_missing_is_seen_when_it_comes(site: Path, install: Any) -> None:
    folder = install("inarch-x", None, points=adapter_points("x", "inarch_x"))
    settle(site)
    assert [f.code for f in fresh().findings] == ["IA304"]
    before = site.stat().st_mtime_ns
    (folder / "inarch.toml").write_text(ADAPTER.format(id="x"))
    assert site.stat().st_mtime_ns == before
    assert list(fresh().adapters) == ["x"]
    assert fresh().findings == []


def test_a_folder_of_another_process_is_not_mistaken_for_this_one(
    site: Path, tmp_path: Path, install: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("inarch-x", ADAPTER.format(id="x"), points=adapter_points("x", "inarch_x"))
    settle(site)
    other = tmp_path / "other"
    other.mkdir()
    then = site.stat().st_mtime_ns
    os.utime(other, ns=(then, then))
    monkeypatch.setattr(sys, "path", ["", *sys.path[1:]])
    monkeypatch.chdir(site)
    assert list(fresh().adapters) == ["x"]
    monkeypatch.chdir(other)
    assert list(fresh().adapters) == []


def test_processes_that_write_the_cache_at_once_leave_a_whole_one(
    site: Path, tmp_path: Path, install: Any
) -> None:
    install("inarch-x", ADAPTER.format(id="x"), points=adapter_points("x", "inarch_x"))
    settle(site)
    script = (
        "for _ in range(20):\n"
        "    _cached_index.cache_clear()\n"
        f"    for file in Path({str(tmp_path / 'cache')!r}).glob('index-*'):\n"
        "        file.unlink(missing_ok=True)\n"
        "    assert list(index().adapters) == ['x']\n"
        "print('done')"
    )
    with ThreadPoolExecutor() as threads:
        assert list(threads.map(started, [script] * 2)) == ["done"] * 2
    assert built() == 0
    assert [file.suffix for file in (tmp_path / "cache").iterdir()] == [".json"]


def test_an_edited_manifest_is_read_again(site: Path, install: Any) -> None:
    folder = install("inarch-x", ADAPTER.format(id="x"), points=adapter_points("x", "inarch_x"))
    settle(site)
    assert (built(), built()) == (1, 0)
    assert index().adapters["x"].summary == "An adapter"
    text = ADAPTER.format(id="x").replace("An adapter", "Another")
    (folder / "inarch.toml").write_text(text)
    os.utime(folder / "inarch.toml", ns=(1, 1))
    assert fresh().adapters["x"].summary == "Another"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"schema": 9}', b"[1, 2]"])
def test_a_broken_cache_costs_time_and_nothing_else(
    site: Path, tmp_path: Path, install: Any, content: bytes
) -> None:
    install("inarch-x", ADAPTER.format(id="x"), points=adapter_points("x", "inarch_x"))
    settle(site)
    index()
    [file] = (tmp_path / "cache").iterdir()
    file.write_bytes(content)
    assert list(fresh().adapters) == ["x"]


def test_a_cache_that_can_t_be_written_is_no_error(
    tmp_path: Path, install: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INARCH_CACHE_DIR", str(tmp_path / "file" / "inside"))
    install("inarch-x", ADAPTER.format(id="x"), points=adapter_points("x", "inarch_x"))
    settle(tmp_path / "site")
    assert list(index().adapters) == ["x"]


def test_a_checkpoint_no_package_reads_names_what_is_installed(install: Any) -> None:
    manifest = "schema = 1\n[[model]]\nid = 'm'\nmodel_types = ['mm']\n"
    install("inarch-m", manifest, points=points("inarch.models", "m", "inarch_m:M"))
    assert index().model_for({"model_type": "mm"}).id == "m"
    with pytest.raises(InarchError) as caught:
        index().model_for({"model_type": "gpt9"})
    assert (caught.value.code, "mm" in caught.value.why) == ("IA306", True)
    assert caught.value.remedy == "pip install inarch-gpt9"


HOOKS = """\
from inarch.plugins.hooks import hook

class Answers:
    @hook
    def {name}(self, {parameter}):
        return [{parameter}]

answers = Answers()
"""


def test_only_the_hooks_of_the_packages_named_are_loaded(install: Any) -> None:
    from inarch.plugins.hooks import manager

    for package in ("inarch-p", "inarch-q"):
        ident = package.replace("-", "_")
        code = HOOKS.format(name="inarch_check", parameter="model")
        group = points("inarch.hooks", ident, f"{ident}:answers")
        install(package, "schema = 1\n", points=group, code=code)
    plugins = manager(["inarch-p"])
    assert plugins.hook.inarch_check(model="m") == [["m"]]
    assert "inarch_q" not in sys.modules
    sys.modules.pop("inarch_p")


@pytest.mark.parametrize(
    ("name", "parameter"), [("inarch_chekc", "model"), ("inarch_check", "modle")]
)
def test_a_misspelt_hook_or_parameter_is_refused(install: Any, name: str, parameter: str) -> None:
    from inarch.plugins.hooks import manager

    code = HOOKS.format(name=name, parameter=parameter)
    group = points("inarch.hooks", "r", "inarch_r:answers")
    install("inarch-r", "schema = 1\n", points=group, code=code)
    with pytest.raises(InarchError) as caught:
        manager(["inarch-r"])
    assert caught.value.code == "IA311"
    sys.modules.pop("inarch_r")
