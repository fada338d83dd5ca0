"""One wheel has one content hash, whoever installed it; any other content has another."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from inarch.plugins.content import content

METADATA = "Metadata-Version: 2.1\nName: a-plugin\nVersion: 1.0\n"
WHEEL = {
    "a_plugin/__init__.py": "X = 1\n",
    "a_plugin/inarch.toml": "schema = 1\n",
    "a_plugin-1.0.dist-info/METADATA": METADATA,
    "a_plugin-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\n",
    "a_plugin-1.0.dist-info/entry_points.txt": "[inarch.manifest]\na = a_plugin:inarch.toml\n",
}
INFO = "a_plugin-1.0.dist-info"
PIP = {
    f"{INFO}/INSTALLER": "pip\n",
    f"{INFO}/REQUESTED": "",
    "a_plugin/__pycache__/__init__.cpython-311.pyc": "compiled",
    "../bin/a-plugin": "#!/one/python\n",
}
UV = {
    f"{INFO}/INSTALLER": "uv\n",
    f"{INFO}/direct_url.json": '{"url": "file:///elsewhere", "archive_info": {}}',
    f"{INFO}/uv_cache.json": "{}",
    "../bin/a-plugin": "#!/other/python\n",
}


def installed(folder: Path, *parts: dict[str, str]) -> Path:
    files = {name: text for part in parts for name, text in part.items()}
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    lines = [f"{name},," for name in [*files, f"{INFO}/RECORD"]]
    (folder / INFO / "RECORD").write_text("\n".join(lines))
    return folder


def hashed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [str(folder), *sys.path])
        found = content("a-plugin")
    assert found is not None
    assert (found.name, found.version, found.editable) == ("a-plugin", "1.0", False)
    return found.sha256


def test_pip_and_uv_give_one_hash_for_one_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_pip = hashed(installed(tmp_path / "p" / "site", WHEEL, PIP), monkeypatch)
    by_uv = hashed(installed(tmp_path / "u" / "site", WHEEL, UV), monkeypatch)
    assert by_pip == by_uv


@pytest.mark.parametrize("name", list(WHEEL))
def test_another_byte_of_any_file_is_another_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    plain = hashed(installed(tmp_path / "a", WHEEL), monkeypatch)
    changed = {**WHEEL, name: WHEEL[name] + "#"}
    assert hashed(installed(tmp_path / "b", changed), monkeypatch) != plain


def test_a_file_that_went_is_another_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = installed(tmp_path, WHEEL)
    plain = hashed(folder, monkeypatch)
    (folder / "a_plugin/__init__.py").unlink()
    assert hashed(folder, monkeypatch) != plain


def test_an_editable_package_counts_where_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "src"
    (source / "a_plugin").mkdir(parents=True)
    (source / "a_plugin" / "__init__.py").write_text("X = 1\n")
    info = {n: t for n, t in WHEEL.items() if ".dist-info" in n}
    pth = {"a_plugin.pth": str(source)}
    url = {f"{INFO}/direct_url.json": '{"url": "file:///x", "dir_info": {"editable": true}}'}
    folder = installed(tmp_path / "site", info, pth, url)
    monkeypatch.setattr(sys, "path", [str(folder), str(source), *sys.path])
    first = content("a-plugin")
    assert first is not None
    assert first.editable
    (source / "a_plugin" / "__init__.py").write_text("X = 2\n")
    second = content("a-plugin")
    assert second is not None
    assert second.sha256 != first.sha256


def test_what_is_not_installed_has_no_content() -> None:
    assert content("no-such-distribution-anywhere") is None
