"""Learned words: what they are in a text, in the tree, and beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import inarch
from inarch.errors import InarchError
from inarch.nn import Sampling

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def vectors(count: int, width: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) * 0.3


def word(folder: Path, name: str, tensors: dict[str, Tensor], **options: Any) -> Any:
    save_file(tensors, folder / f"{name}.safetensors")
    path = folder / f"{name}.safetensors"
    return inarch.adapter("textual-inversion", weights=path, name=name, **options)


def states(model: Any, input_ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model.tree(input_ids, mask=None)[0]


def test_a_word_reads_as_its_vectors(encoders: Any, ids: Any, tmp_path: Path) -> None:
    _, theirs, base = encoders()
    learned = vectors(2)
    model = base.adapt(word(tmp_path, "toy", {"<toy>": learned}))
    input_ids = ids(model.tokenizer, "a <toy> dog")
    size = base.tokenizer.size
    assert input_ids[0, 2:4].tolist() == [size, size + 1]
    table = torch.cat([theirs.get_input_embeddings().weight, learned])
    with torch.no_grad():
        theirs.set_input_embeddings(torch.nn.Embedding.from_pretrained(table))
        expected = theirs(input_ids).last_hidden_state
    torch.testing.assert_close(states(model, input_ids), expected, **CLOSE)


def test_texts_without_the_word_keep_every_bit(encoders: Any, ids: Any, tmp_path: Path) -> None:
    _, _, base = encoders()
    model = base.adapt(word(tmp_path, "toy", {"<toy>": vectors(1)}))
    for text in ("a photo of a dog", "a toy", ""):
        input_ids = ids(base.tokenizer, text)
        assert torch.equal(input_ids, ids(model.tokenizer, text))
        assert torch.equal(states(model, input_ids), states(base, input_ids))


def test_the_base_knows_no_word_of_it(encoders: Any, tmp_path: Path) -> None:
    _, _, base = encoders()
    before = base.tokenizer.encode("a <toy>"), base.tokenizer.size
    weight = base.tree.text_model.embeddings.token_embedding.weight
    bits = weight.clone()
    model = base.adapt(word(tmp_path, "toy", {"<toy>": vectors(3)}))
    assert (base.tokenizer.encode("a <toy>"), base.tokenizer.size) == before
    assert model.tree.text_model.embeddings.token_embedding.weight is weight
    assert torch.equal(weight, bits)
    dropped = model.without("toy")
    assert dropped.tokenizer.encode("a <toy>") == before[0]
    assert dropped.tree.source == base.tree.source


def test_the_source_shows_where_ids_are_looked_up(encoders: Any, tmp_path: Path) -> None:
    _, _, base = encoders()
    model = base.adapt(
        word(tmp_path, "toy", {"<toy>": vectors(2)}), word(tmp_path, "art", {"<art>": vectors(1)})
    )
    assert model.tree.source == (
        "def forward(self, input_ids, *, mask):\n"
        "    art_vectors = self.vectors__art(input_ids)\n"
        "    toy_vectors = self.vectors__toy(input_ids)\n"
        "    return self.text_model("
        "input_ids, art_vectors=art_vectors, toy_vectors=toy_vectors, mask=mask)\n"
    )
    assert model.tree.text_model.embeddings.source == (
        "def forward(self, input_ids, *, art_vectors, toy_vectors):\n"
        "    input_ids_2 = in_vocabulary(input_ids)\n"
        "    token_embedding = self.token_embedding(input_ids_2)\n"
        "    token_embedding = with_learned(token_embedding, input_ids, art_vectors)\n"
        "    token_embedding = with_learned_2(token_embedding, input_ids, toy_vectors)\n"
        "    count = positions_of_ids(input_ids)\n"
        "    positions = self.position_embedding(count)\n"
        "    return token_embedding + positions\n"
    )


def test_two_words_are_one_model_in_either_order(encoders: Any, ids: Any, tmp_path: Path) -> None:
    _, _, base = encoders()
    toy, art = (
        word(tmp_path, name, {f"<{name}>": vectors(count, seed=count)})
        for name, count in (("toy", 2), ("art", 3))
    )
    one, two = base.adapt(toy, art), base.adapt(art).adapt(toy)
    assert one.digest == two.digest
    assert one.tree.text_model.embeddings.source == two.tree.text_model.embeddings.source
    input_ids = ids(one.tokenizer, "a <toy> and an <art>")
    assert torch.equal(input_ids, ids(two.tokenizer, "a <toy> and an <art>"))
    assert torch.equal(states(one, input_ids), states(two, input_ids))
    alone = states(base.adapt(toy), ids(base.adapt(toy).tokenizer, "a <toy>"))
    assert torch.equal(states(one, ids(one.tokenizer, "a <toy>")), alone)


def test_a_word_of_several_vectors_is_written_once_or_in_full(
    encoders: Any, tmp_path: Path
) -> None:
    _, _, base = encoders()
    tokenizer = base.adapt(word(tmp_path, "toy", {"<toy>": vectors(3)})).tokenizer
    first = base.tokenizer.size
    whole = [first, first + 1, first + 2]
    for text in ("<toy>", "<TOY>", "<toy> <toy>_1 <toy>_2"):
        assert tokenizer.encode(text, special=False) == whole
    assert tokenizer.encode("<toy><toy>", special=False) == whole * 2
    assert tokenizer.encode("<toy>_2", special=False) == whole[2:]


def test_each_vector_may_have_a_token_of_its_own(encoders: Any, tmp_path: Path) -> None:
    _, _, base = encoders()
    spec = word(tmp_path, "toy", {"emb_params": vectors(2)}, tokens=("<s0>", "<s1>"))
    tokenizer = base.adapt(spec).tokenizer
    size = base.tokenizer.size
    assert tokenizer.encode("<s1> <s0>", special=False) == [size + 1, size]
    with pytest.raises(InarchError) as caught:
        base.adapt(word(tmp_path, "toy", {"emb_params": vectors(3)}, tokens=("<s0>", "<s1>")))
    assert caught.value.code == "IA473"


def test_a_lora_of_the_embedding_acts_on_the_base_s_words_alone(
    encoders: Any, ids: Any, tmp_path: Path
) -> None:
    _, _, base = encoders()
    targets = ["text_model.embeddings.token_embedding", "attention.query"]
    lora = inarch.adapter("lora", rank=2, targets=targets, name="zeal")
    tuned = base.adapt(lora)
    with torch.no_grad():
        for parameter in tuned.adapters["zeal"].parameters().values():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    both = tuned.adapt(word(tmp_path, "toy", {"<toy>": vectors(1)}))
    plain = ids(base.tokenizer, "a photo")
    assert torch.equal(states(both, plain), states(tuned, plain))
    input_ids = ids(both.tokenizer, "a <toy>")
    embeddings = both.tree.text_model.embeddings
    with torch.no_grad():
        found = embeddings(input_ids, toy_vectors=vectors(1))
        position = embeddings.position_embedding.weight[2]
    torch.testing.assert_close(found[0, 2], vectors(1)[0] + position)


def test_it_teaches_language_models_words_too(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1)
    ).eval()
    theirs.save_pretrained(tmp_path / "base")
    base, learned = inarch.load(tmp_path / "base"), vectors(2)
    model = base.adapt(word(tmp_path, "toy", {"<toy>": learned}))
    input_ids = torch.tensor([[5, 40, 41, 7], [1, 2, 3, 4]])
    table = torch.cat([theirs.get_input_embeddings().weight.detach(), learned])
    with torch.no_grad():
        embedded = torch.nn.functional.embedding(input_ids, table)
        expected = theirs(inputs_embeds=embedded).logits
        torch.testing.assert_close(model(input_ids), expected, **CLOSE)
    assert torch.equal(model(input_ids[1:]), base(input_ids[1:]))
    sampling = Sampling(repetition_penalty=1.5)
    steps = model.generate_ids([[5, 40, 41]], max_new_tokens=3, sampling=sampling, stop=frozenset())
    assert all(token is not None and token < 40 for [token] in steps)


# Learning


def test_untrained_vectors_begin_as_the_words_they_are_told(encoders: Any) -> None:
    _, _, base = encoders()
    spec = inarch.adapter("textual-inversion", name="toy", vectors=3, initial="cat dog")
    weight = base.tree.text_model.embeddings.token_embedding.weight
    rows = base.tokenizer.encode("cat dog cat", special=False)
    [parameter] = base.adapt(spec).adapters["toy"].parameters().values()
    assert torch.equal(parameter, weight[rows])
    spec = inarch.adapter("textual-inversion", name="toy", vectors=2)
    [parameter] = base.adapt(spec).adapters["toy"].parameters().values()
    torch.testing.assert_close(parameter.detach(), weight.mean(0).expand(2, -1))


def test_only_the_vectors_learn_and_they_are_saved_as_diffusers_reads_them(
    encoders: Any, ids: Any, tmp_path: Path
) -> None:
    _, _, base = encoders()
    model = base.adapt(
        inarch.adapter("textual-inversion", name="toy", token="<cat-toy>", vectors=2)
    )
    [parameter] = model.adapters["toy"].parameters().values()
    input_ids = ids(model.tokenizer, "a <cat-toy>")
    losses: list[float] = []
    optimiser = torch.optim.SGD([parameter], lr=0.5)
    for _ in range(3):
        loss = model.tree(input_ids, mask=None)[0].sub(1.0).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[2] < losses[1] < losses[0]
    assert all(p.grad is None for p in base.parameters())
    folder = model.save_adapter("toy", tmp_path / "saved")
    tensors = load_file(folder / "learned_embeds.safetensors")
    assert list(tensors) == ["<cat-toy>"]
    again = base.adapt(inarch.adapter("textual-inversion", weights=folder, name="other"))
    assert torch.equal(ids(again.tokenizer, "a <cat-toy>"), input_ids)
    assert torch.equal(states(again, input_ids), states(model, input_ids))


def test_in_bfloat16_the_vectors_take_the_base_s_dtype(
    encoders: Any, ids: Any, tmp_path: Path
) -> None:
    _, _, base = encoders()
    half = inarch.load(base.checkpoint.path, dtype="bfloat16")
    model = half.adapt(word(tmp_path, "toy", {"<toy>": vectors(1)}))
    found = states(model, ids(model.tokenizer, "a <toy>"))
    assert found.dtype == torch.bfloat16
    assert torch.isfinite(found).all()
    other = half.adapt(word(tmp_path, "toy", {"<toy>": vectors(1, seed=5)}))
    assert not torch.equal(found, states(other, ids(model.tokenizer, "a <toy>")))
