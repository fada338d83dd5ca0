"""GGUF files: every common type, the configuration, the names and orders, the tokenizer."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize

import inarch
from inarch.errors import InarchError
from inarch_gguf.checkpoint import GGUFCheckpoint

TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]
K_TYPES = {"Q4_K": 144, "Q5_K": 176, "Q6_K": 210}
HIDDEN, HEADS, GROUPS, INNER, BLOCKS, WORDS = 64, 4, 2, 96, 2, 40


def shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of a small Llama by GGUF name."""
    head = HIDDEN // HEADS
    found: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (WORDS, HIDDEN),
        "output_norm.weight": (HIDDEN,),
        "output.weight": (WORDS, HIDDEN),
    }
    for i in range(BLOCKS):
        found |= {
            f"blk.{i}.attn_norm.weight": (HIDDEN,),
            f"blk.{i}.ffn_norm.weight": (HIDDEN,),
            f"blk.{i}.attn_q.weight": (HIDDEN, HIDDEN),
            f"blk.{i}.attn_k.weight": (head * GROUPS, HIDDEN),
            f"blk.{i}.attn_v.weight": (head * GROUPS, HIDDEN),
            f"blk.{i}.attn_output.weight": (HIDDEN, HIDDEN),
            f"blk.{i}.ffn_gate.weight": (INNER, HIDDEN),
            f"blk.{i}.ffn_up.weight": (INNER, HIDDEN),
            f"blk.{i}.ffn_down.weight": (HIDDEN, INNER),
        }
    return found


def write(path: Path, kind: str = "F32", *, drop: str = "", **fields: Any) -> dict[str, np.ndarray]:
    """A random file; gives what each tensor is once dequantised by the gguf package."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(WORDS)
    writer.add_block_count(BLOCKS)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    for key, value in fields.items():
        name = key.replace("__", ".")
        writer.add_string(name, value) if isinstance(value, str) else writer.add_float32(
            name, value
        )
    values: dict[str, np.ndarray] = {}
    for name, shape in shapes().items():
        if name == drop:
            continue
        data = (rng.standard_normal(shape) * 0.3).astype(np.float32)
        stored = gguf.GGMLQuantizationType[kind if len(shape) > 1 else "F32"]
        packed = quantize(data, stored)
        values[name] = dequantize(packed, stored)
        writer.add_tensor(name, packed, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_is_dequantised_as_the_gguf_package_does(tmp_path: Path, kind: str) -> None:
    values = write(tmp_path / "model.gguf", kind)
    model = inarch.load(tmp_path / "model.gguf", dtype="float32")
    expected = torch.from_numpy(values["blk.1.ffn_down.weight"])
    assert torch.equal(model.tree.model.layers[1].mlp.down_proj.weight, expected)
    assert torch.equal(model.tree.lm_head.weight, torch.from_numpy(values["output.weight"]))


@pytest.mark.parametrize("kind", K_TYPES)
def test_the_k_types_are_dequantised_as_the_gguf_package_does(tmp_path: Path, kind: str) -> None:
    """The package quantises none of these, so the blocks are random bytes, halves made finite."""
    rng = np.random.default_rng(1)
    rows, stored = 5, gguf.GGMLQuantizationType[kind]
    data = rng.integers(0, 255, (rows, 3 * K_TYPES[kind]), dtype=np.uint8)
    offsets = (208,) if kind == "Q6_K" else (0, 2)
    for block in range(3):
        for offset in offsets:
            at = block * K_TYPES[kind] + offset
            data[:, at : at + 2] = rng.random((rows, 1)).astype(np.float16).view(np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "raw.gguf", "llama")
    writer.add_tensor("x", data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    reader = gguf.GGUFReader(tmp_path / "raw.gguf")
    checkpoint = object.__new__(GGUFCheckpoint)
    checkpoint.path = tmp_path / "raw.gguf"
    from inarch_gguf.checkpoint import _Stored

    actual = checkpoint._read(_Stored.of(reader.tensors[0]), torch.float32)
    assert torch.equal(actual, torch.from_numpy(dequantize(data, stored)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_take_the_dtype_asked_for(tmp_path: Path, dtype: torch.dtype) -> None:
    values = write(tmp_path / "model.gguf", "Q8_0")
    model = inarch.load(tmp_path / "model.gguf", dtype=dtype)
    expected = torch.from_numpy(values["output.weight"]).to(dtype)
    assert torch.equal(model.tree.lm_head.weight, expected)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
def test_norms_of_more_bits_than_the_layers_have_run_with_them(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "model.gguf", kind)
    model = inarch.load(tmp_path / "model.gguf")
    exact = inarch.load(tmp_path / "model.gguf", dtype="float32")
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(model(ids), exact(ids))


@pytest.mark.parametrize("tied", [False, True])
def test_logits_equal_those_transformers_gives_from_the_same_file(
    tmp_path: Path, tied: bool
) -> None:
    transformers = pytest.importorskip("transformers")
    write(tmp_path / "model.gguf", "Q8_0", drop="output.weight" if tied else "")
    ours = inarch.load(tmp_path / "model.gguf", dtype="float32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32
    )
    ids = torch.randint(0, WORDS, (2, 11), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda data: data[: len(data) // 2], "IA202"),
        (lambda data: data[:20], "IA202"),
        (lambda data: b"GGUF" + b"\0" * 40, "IA202"),
        (lambda data: data[:-64], "IA202"),
    ],
)
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, change: Any, code: str) -> None:
    path = tmp_path / "model.gguf"
    write(path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InarchError) as caught:
        inarch.load(path)
    assert (caught.value.code, str(path) in caught.value.where) == (code, True)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", drop="blk.1.attn_v.weight")
    with pytest.raises(InarchError) as caught:
        inarch.load(tmp_path / "model.gguf")
    assert caught.value.code == "IA206"
    assert "missing: model.layers.1.self_attn.v_proj.weight" in caught.value.why


def test_another_architecture_is_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InarchError) as caught:
        inarch.load(tmp_path / "model.gguf")
    assert (caught.value.code, "mamba" in caught.value.what) == ("IA251", True)


def test_rope_settings_are_read(tmp_path: Path) -> None:
    fields = {"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 4.0}
    write(tmp_path / "model.gguf", **fields)
    model = inarch.load(tmp_path / "model.gguf")
    assert model.config.rope_scaling == {"rope_type": "linear", "factor": 4.0}


def test_llama_3_factors_are_recognised() -> None:
    from inarch_gguf.architecture import _llama3, llama3_scaling

    frequencies = 500000.0 ** -(np.arange(0, 128, 2) / 128)
    settings = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    factors = _llama3(frequencies, settings).astype(np.float32)
    assert llama3_scaling(factors, {"rope_theta": 500000.0}) == settings
    with pytest.raises(InarchError):
        llama3_scaling(factors[::-1], {"rope_theta": 500000.0})


def texts() -> list[str]:
    """500 varied strings, the same each time."""
    rng = random.Random(0)
    parts = [
        "Hello", " world", "  ", "\n", "\n\n", "\t", "don't", "I'll", "123", "4,567.89", "0x1F",
        "naïve", "Zürich", "日本語", "русский", "🙂", "👩‍👩‍👧", "العربية", "<|im_start|>",
        "<|im_end|>", "<|endoftext|>", "def f(x):", "    return x**2", "http://a.b/c?d=e&f=1",
        "...", "—", "'", '"', "\u00a0", "\u200b", "ﬁ", "A", "ß", "_", "snake_case", "CamelCase",
        "1 + 1 = 2", "\r\n", "e\u0301", "user", " The", "!",
    ]  # fmt: skip
    return ["", " ", *("".join(rng.choices(parts, k=rng.randint(1, 12))) for _ in range(498))]


def test_the_tokenizer_of_the_real_file_equals_transformers_on_500_strings() -> None:
    transformers = pytest.importorskip("transformers")
    from inarch.plugins import locate_checkpoint

    path = locate_checkpoint("smollm2")
    ours = GGUFCheckpoint(path).tokenizer()
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in texts():
        ids = theirs(text)["input_ids"]
        assert ours.encode(text) == ids, text
        assert ours.decode(ids, skip_special=False) == theirs.decode(ids), text
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi!"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Bye"},
    ]
    for given in (messages, messages[1:], messages[1:2]):
        expected = theirs.apply_chat_template(given, tokenize=False, add_generation_prompt=True)
        assert ours.chat(given) == expected


def sentencepiece_fields() -> dict[str, Any]:
    words = ["▁", "a", "b", "c", "ab", "▁a", "▁ab", "bc", "abc", "▁abc", "d"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *words]
    kinds = [2, 3, 3, *[6] * 256, *[1] * len(words)]
    scores = [0.0] * 259 + [-float(i) for i in (9, 9, 9, 9, 1, 2, 3, 4, 5, 6, 9)]
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def test_a_sentencepiece_vocabulary_encodes_as_transformers_does(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from inarch_gguf.tokenizer import tokenizer_of

    fields = sentencepiece_fields()
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(fields["tokenizer.ggml.tokens"])
    writer.add_token_types(fields["tokenizer.ggml.token_type"])
    writer.add_token_scores(fields["tokenizer.ggml.scores"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours = tokenizer_of(fields, "here")
    theirs = transformers.LlamaTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    for text in ("abc", " abc d", "aabbcc", "a  b", "é", "abc</s>", "日", "", "d abcabc\n"):
        assert ours.encode(text) == theirs(text)["input_ids"], text
        ids = ours.encode(text, special=False)
        assert ours.decode(ids, skip_special=False) == theirs.decode(ids), text


@pytest.mark.parametrize(
    "field", [{"tokenizer.ggml.model": "rwkv"}, {"tokenizer.ggml.pre": "unheard-of"}]
)
def test_a_tokenizer_that_is_not_known_is_named(field: dict[str, str]) -> None:
    from inarch_gguf.tokenizer import tokenizer_of

    fields = sentencepiece_fields() | {"tokenizer.ggml.model": "gpt2"} | field
    with pytest.raises(InarchError) as caught:
        tokenizer_of(fields, "here")
    assert caught.value.code == "IA253"
