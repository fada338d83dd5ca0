"""Tokenizers and chat templates, against transformers from the same folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from inarch.errors import InarchError
from inarch.nn import Tokenizer
from inarch.nn.chat import ChatTemplate

TALK = [
    {"role": "system", "content": 'You are <kind> & "brief".'},
    {"role": "user", "content": "Où est la mer ? 🌊"},
    {"role": "assistant", "content": "There."},
    {"role": "user", "content": "Thanks"},
]
TEMPLATES = {
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "blocks": "{{ bos_token }}\n{%- for m in messages %}\n    {% if m.role == 'user' %}\n"
    "  [INST] {{ m.content | trim }} [/INST]\n    {% else %}\n{{ m.content }}{{ eos_token }}\n"
    "    {% endif %}\n{% endfor %}",
    "json": "{{ messages | tojson }} {{ messages[0] | tojson(indent=2) }}"
    "{{ messages[0] | tojson(separators=(',', ':'), sort_keys=True) }}",
    "loop": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}"
    "{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content }}{% endfor %}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% else %}"
    "{{ m.content }}{% endif %}{% endfor %}",
    "date": "{{ strftime_now('%Y') }}{% set ns = namespace(n=0) %}"
    "{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "defined": "{% if tools %}tools{% endif %}{% if pad_token is defined %}{{ pad_token }}"
    "{% endif %}{% if date_string is not defined %}none{% endif %}",
}


def folder(path: Path, tokenizer: Tokenizer, **told: Any) -> Path:
    tokenizer.backend.save(str(path / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": {"content": "<s>", "__type": "AddedToken"},
        "eos_token": "</s>",
        **told,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def theirs(path: Path) -> Any:
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(path)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("reply", [True, False])
def test_chat_templates_give_the_text_transformers_gives(
    tmp_path: Path, tokenizer: Tokenizer, name: str, reply: bool
) -> None:
    path = folder(tmp_path, tokenizer, chat_template=TEMPLATES[name])
    expected = theirs(path).apply_chat_template(TALK, tokenize=False, add_generation_prompt=reply)
    assert Tokenizer.from_folder(path).chat(TALK, reply=reply) == expected


def test_a_template_in_a_file_of_its_own_comes_first(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = folder(tmp_path, tokenizer, chat_template="settings")
    (path / "chat_template.jinja").write_text("file")
    assert Tokenizer.from_folder(path).chat(TALK) == "file"


def test_the_default_of_several_named_templates_is_taken(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    named = [{"name": "tool_use", "template": "tool"}, {"name": "default", "template": "plain"}]
    path = folder(tmp_path, tokenizer, chat_template=named)
    assert Tokenizer.from_folder(path).chat(TALK) == "plain"


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ missing.content }}",
    ],
)
def test_a_template_that_refuses_or_reaches_out_is_one_clear_error(template: str) -> None:
    with pytest.raises(InarchError) as caught:
        ChatTemplate(template).render(TALK, reply=True)
    assert caught.value.code == "IA503"


def test_a_template_that_is_no_jinja_is_refused() -> None:
    with pytest.raises(InarchError) as caught:
        ChatTemplate("{% for %}")
    assert caught.value.code == "IA503"


def test_messages_without_a_template_are_refused(bare_tokenizer: Tokenizer) -> None:
    with pytest.raises(InarchError) as caught:
        bare_tokenizer.chat(TALK)
    assert caught.value.code == "IA502"


@pytest.mark.parametrize("told", [{}, {"add_bos_token": True}, {"add_bos_token": False}], ids=str)
@pytest.mark.parametrize("written", [True, False], ids=["bos in the file", "no bos in the file"])
def test_what_stands_before_a_text_is_what_transformers_puts_there(
    tmp_path: Path, tokenizer: Tokenizer, told: dict[str, bool], written: bool
) -> None:
    if written:
        tokenizer.backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.bos_id)]
        )
    path = folder(tmp_path, tokenizer, **told)
    expected = theirs(path)("Hello, sea").input_ids
    assert Tokenizer.from_folder(path).encode("Hello, sea") == expected
    assert expected[0] == tokenizer.bos_id if written else expected[0] != tokenizer.bos_id


def test_special_tokens_are_known_by_text_and_id(tmp_path: Path, tokenizer: Tokenizer) -> None:
    read = Tokenizer.from_folder(folder(tmp_path, tokenizer))
    assert (read.bos_id, read.eos_id, read.pad_id) == (256, 257, None)


def test_padding_and_cutting_off_in_the_file_are_passed_over(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    tokenizer.backend.enable_padding(length=64)
    tokenizer.backend.enable_truncation(3)
    assert len(Tokenizer.from_folder(folder(tmp_path, tokenizer)).encode("longer")) == 6


def test_a_broken_tokenizer_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InarchError) as caught:
        Tokenizer.from_folder(tmp_path)
    assert caught.value.code == "IA501"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(text=st.text(max_size=40))
def test_a_stream_gives_the_text_and_never_half_a_character(
    shared_tokenizer: Tokenizer, text: str
) -> None:
    tokenizer = shared_tokenizer
    ids = tokenizer.encode(text)
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.rest() == tokenizer.decode(ids) == text
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)


def test_bytes_that_are_no_character_come_out_at_the_end(tokenizer: Tokenizer) -> None:
    stream = tokenizer.stream()
    half = tokenizer.encode("🌊")[:2]
    assert [stream.push(token) for token in half] == ["", ""]
    assert stream.rest() == tokenizer.decode(half)


def test_a_grown_tokenizer_knows_more_tokens_and_the_one_it_came_from_does_not(
    tokenizer: Tokenizer,
) -> None:
    before, size = tokenizer.encode("a <new> b"), tokenizer.size
    grown = tokenizer.grown([("<new>", "<new>_1"), ("<old>",)])
    ids = grown.encode("<new> <old><new>", special=False)
    assert [i for i in ids if i >= size] == [size, size + 1, size + 2, size, size + 1]
    again = grown.encode("<new><new>_1", special=False)
    assert [i for i in again if i >= size] == [size, size + 1]
    assert grown.size == size + 3
    assert (tokenizer.encode("a <new> b"), tokenizer.size) == (before, size)
    assert grown.encode("a b") == tokenizer.encode("a b")
