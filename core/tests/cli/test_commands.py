"""The command line as its user meets it: data on stdout, messages on stderr, one way out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import BROKEN, install, run

MODEL = """\
schema = 1
[[model]]
id = "llama"
summary = "Language models"
model_types = ["llama"]
[model.roles]
"attention.query" = "layers.*.q"
"mlp.up" = "layers.*.up"
"""
ADAPTERS = """\
schema = 1
[[adapter]]
id = "lora"
summary = "Low rank"
roles = ["attention.*", "mlp.*"]
kinds = ["add"]
[[adapter]]
id = "control"
summary = "For images"
roles = ["skip.*"]
kinds = ["provide"]
[[weights]]
id = "pirate"
summary = "A voice"
adapter = "lora"
model = "llama"
path = "pirate"
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from inarch.plugins.index import _cached_index

    folder = tmp_path / "site"
    folder.mkdir()
    install(
        folder, "inarch-meadow", MODEL, "[inarch.models]\nllama = inarch_meadow:Llama\n", BROKEN
    )
    install(
        folder,
        "inarch-adapters",
        ADAPTERS,
        "[inarch.adapters]\nlora = inarch_adapters:A\ncontrol = inarch_adapters:B\n",
        BROKEN,
    )
    import inarch.loading  # torch, while the path still leads to it

    real = [p for p in sys.path if p and "site-packages" not in p and "inarch" not in p]
    assert inarch.loading.load
    monkeypatch.setattr(sys, "path", [str(folder), *real])
    monkeypatch.setenv("INARCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")
    _cached_index.cache_clear()
    yield folder
    _cached_index.cache_clear()


def test_models_lists_what_is_installed(site: Path, capsys: Any) -> None:
    assert run("models") == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["id", "kind", "package", "summary"]
    assert ["llama", "model", "inarch-meadow"] in [row.split()[:3] for row in rows]


def test_adapters_for_a_model_are_those_whose_roles_it_has(site: Path, capsys: Any) -> None:
    assert run("adapters", "--for", "llama") == 0
    streams = capsys.readouterr()
    listed = [line.split()[0] for line in streams.out.splitlines()[1:]]
    assert listed == ["lora", "pirate"]
    assert "control does not fit: llama has no role skip.*" in streams.err


def test_a_checkpoint_folder_stands_for_its_model(site: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert run("adapters", "--for", str(tmp_path)) == 0
    assert "lora" in capsys.readouterr().out


@pytest.mark.parametrize(
    "args",
    [
        ("models",),
        ("adapters",),
        ("adapters", "--for", "llama"),
        ("show", "lora"),
        ("show", "nothing"),
        ("adapters", "--for", "gpt"),
        ("shwo",),
        ("run",),
        ("run", "llama", "--prompt", "x"),
        ("tree", "llama"),
        ("new", "adapter", "Bad Name"),
        ("doctor",),
    ],
)
def test_every_answer_has_one_envelope(site: Path, capsys: Any, args: tuple[str, ...]) -> None:
    code = run(*args, "--json")
    body = json.loads(capsys.readouterr().out)
    assert set(body) == {"inarch", "command", "ok", "data", "error"}
    assert body["ok"] == (body["error"] is None)
    if body["error"]:
        assert set(body["error"]) == {"code", "what", "where", "why", "remedy"}
        assert code in (1, 2, 3)


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("show", "lroa"), 1, "inarch show lora"),
        (("adapters", "--for", "lama"), 1, "did you mean: llama"),
        (("modles",), 2, "inarch models"),
        (("run", "llama"), 2, "--prompt"),
        (("run", "llama", "--prompt", "x", "--top-p", "3"), 2, "--top-p"),
        (("tree", "llama"), 1, "IA703"),
        (("tree", "/nowhere"), 1, "IA201"),
        (("new", "adapter", "Bad Name"), 1, "IA705"),
        (("new", "thing", "x"), 2, "adapter"),
        (("run", "missing.toml", "--prompt", "x"), 1, "IA404"),
    ],
)
def test_a_mistake_exits_with_its_code_and_one_thing_to_do(
    site: Path, capsys: Any, args: tuple[str, ...], code: int, said: str
) -> None:
    assert run(*args) == code
    streams = capsys.readouterr()
    assert streams.out == ""
    assert said in streams.err
    assert "= help: " in streams.err


def test_show_prints_roles_and_says_of_trained_weights_what_they_need(
    site: Path, capsys: Any
) -> None:
    assert run("show", "llama") == 0
    assert "attention.query" in capsys.readouterr().out
    assert run("show", "pirate") == 0
    assert "lora" in capsys.readouterr().out


def test_show_keeps_every_field_apart_from_its_value(site: Path, capsys: Any) -> None:
    loud = '[[adapter]]\nid = "loud"\ninitial_effect = "it begins loud"\npaper = "none"\n'
    install(site, "inarch-loud", f"schema = 1\n{loud}", "[inarch.adapters]\nloud = inarch_loud:A\n")
    assert run("show", "loud") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  initial_effect  it begins loud" in lines
    assert "  paper           none" in lines
    assert "  trainable       no" in lines


def test_doctor_names_a_broken_package_and_exits_with_1(site: Path, capsys: Any) -> None:
    install(site, "inarch-worse", "schema = 1\n[[adapter]]\n")
    assert run("doctor", "--no-import") == 1
    out = capsys.readouterr().out
    assert "warning[IA302]: inarch-worse" in out
    assert "IA309" not in out
    assert run("doctor") == 1
    out = capsys.readouterr().out
    assert "warning[IA302]: inarch-worse" in out
    assert "imported" in out
    assert out.count("warning[IA309]") == 3


@pytest.mark.parametrize("code", [BROKEN, "import sys; sys.exit(3)", "def f(:", "import nowhere"])
def test_whatever_a_package_does_when_imported_doctor_goes_on(
    site: Path, capsys: Any, code: str
) -> None:
    points = "[inarch.adapters]\nbad = inarch_worse:A\n[inarch.hooks]\nbad = inarch_worse:B\n"
    manifest = 'schema = 1\n[[adapter]]\nid = "bad"\n'
    install(site, "inarch-worse", manifest, points, code)
    assert run("doctor") == 1
    assert capsys.readouterr().out.count("warning[IA309]: inarch-worse") == 2
    assert run("adapters") == 0
    assert "lora" in capsys.readouterr().out


def test_no_line_is_wider_than_the_terminal(site: Path, capsys: Any) -> None:
    long = MODEL.replace("Language models", "words " * 40).replace('"llama"', '"other"')
    install(site, "inarch-o", long, "[inarch.models]\nother = inarch_o:O\n")
    run("models")
    run("--help")
    assert max(len(line) for line in capsys.readouterr().out.splitlines()) <= 80


COMMAND = """\
import click
from inarch.plugins.hooks import hook

@click.command()
def greet():
    click.echo("hello from a package")

class Answers:
    @hook
    def inarch_commands(self):
        return [greet]

answers = Answers()
"""


def test_a_package_may_add_a_command(site: Path, capsys: Any) -> None:
    points = "[inarch.hooks]\nextra = inarch_extra:answers\n"
    install(site, "inarch-extra", "schema = 1\n", points, COMMAND)
    install(
        site, "inarch-bad", "schema = 1\n", "[inarch.hooks]\nbad = inarch_bad:answers\n", BROKEN
    )
    assert run("models") == 0
    assert "inarch_extra" not in sys.modules
    capsys.readouterr()
    assert run("greet") == 0
    streams = capsys.readouterr()
    assert streams.out == "hello from a package\n"
    assert "inarch-bad can't be loaded" in streams.err
    sys.modules.pop("inarch_extra")


SCRIPT = """\
import sys, time
start = time.perf_counter()
from inarch.cli.main import main
try:
    main(["adapters", "--for", "llama"])
except SystemExit as stop:
    assert not stop.code, stop.code
took = time.perf_counter() - start
bad = [m for m in sys.modules if m.split(".")[0] in ("torch", "numpy", "rich", "inarch_llama")
       or m.startswith("plugin_")]
print("IMPORTED", bad, "SECONDS", round(took, 4), file=sys.stderr)
"""


def test_listing_imports_neither_torch_nor_a_plugin_among_sixty_distributions(
    site: Path, tmp_path: Path
) -> None:
    for i in range(60):
        text = ADAPTERS.replace('"lora"', f'"lora{i}"').replace('"control"', f'"control{i}"')
        text = text.replace('"pirate"', f'"pirate{i}"')
        package = f"plugin_{i}"
        points = f"[inarch.adapters]\nlora{i} = {package}:A\ncontrol{i} = {package}:B\n"
        install(site, package.replace("_", "-"), text, points, BROKEN)
    environment = dict(os.environ) | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-c", SCRIPT]
    seconds: list[float] = []
    for _ in range(4):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert "lora59" in done.stdout
        *_, imported, took = done.stderr.splitlines()[-1].partition("SECONDS")
        assert "IMPORTED []" in done.stderr
        assert not imported.strip() or imported
        seconds.append(float(took))
    print(f"adapters --for llama with 60 distributions: {min(seconds) * 1000:.0f} ms")


@pytest.mark.parametrize(("loaded", "frozen"), [("", "True"), ("torch", "False")])
def test_a_process_searches_no_garbage_at_its_end_unless_a_model_was_loaded(
    loaded: str, frozen: str
) -> None:
    script = (
        "import atexit, gc, sys; from inarch.cli.main import main\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 0))\n"  # which runs after main's
        f"sys.modules.update(dict.fromkeys({loaded.split()!r}))\n"
        "main(['--version'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, frozen)
