"""`inarch run` for text: its options are those of loading and of generating."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch._dynamo.testing import CompileCounter

import inarch
import inarch.loading
from inarch.cli.main import main
from inarch.testing.compiling import counting_compiler
from inarch_llama.model import Llama

CONFIG = {
    "model_type": "llama",
    "vocab_size": 6,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
WORDS = ["<unk>", "the", "sea", "is", "wide", "deep"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint with a tokenizer of six words."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    torch.manual_seed(5)
    save_file(
        Llama.build(Llama.parse_config(CONFIG))[""].state_dict(), tmp_path / "model.safetensors"
    )
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


@pytest.fixture
def compiler() -> Iterator[CompileCounter]:
    with counting_compiler() as counter:
        yield counter


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The models that are loaded."""
    found: list[Any] = []
    load = inarch.loading.load

    def noted(*args: Any, **options: Any) -> Any:
        found.append(load(*args, **options))
        return found[-1]

    monkeypatch.setattr(inarch.loading, "load", noted)
    return found


def said(capsys: pytest.CaptureFixture[str], *args: Any) -> str:
    command = ["run", *map(str, args), "--prompt", "the sea is", "--greedy", "--json"]
    with pytest.raises(SystemExit) as stop:
        main([*command, "--max-new-tokens", "9"])
    assert stop.value.code == 0
    return json.loads(capsys.readouterr().out)["data"]["text"]


def test_a_packed_and_compiled_run_says_what_a_plain_one_says(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    loaded: list[Any],
    compiler: CompileCounter,
) -> None:
    plain = said(capsys, folder)
    assert plain == inarch.load(folder).generate("the sea is", max_new_tokens=9)
    assert compiler.frame_count == 0
    assert said(capsys, folder, "--compile") == plain
    assert compiler.frame_count == 1
    assert said(capsys, folder, "--packed") == plain
    sources = [model.tree.model.layers[0].self_attn.source for model in loaded[-2:]]
    assert ["self.qkv(" in source for source in sources] == [False, True]


def test_a_stack_is_loaded_as_the_options_say(
    folder: Path, capsys: pytest.CaptureFixture[str], loaded: list[Any]
) -> None:
    stack = folder / "stack.toml"
    stack.write_text(f'model = "{folder}"\n')
    assert said(capsys, stack, "--packed", "--dtype", "float64") == said(capsys, folder)
    weight = loaded[0].tree.model.layers[0].self_attn.q_proj.weight
    assert weight.dtype == torch.float64
    assert "self.qkv(" in loaded[0].tree.model.layers[0].self_attn.source
