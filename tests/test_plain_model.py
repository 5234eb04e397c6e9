"""A model's folder decides nothing but its function: not how it is sampled, computed or stored, nor what it costs."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from scorefast.errors import UserError
from scorefast.model import plain_model
from scorefast.model.four_bit import keep_unpacked, nf4
from scorefast.model.generate import generate
from scorefast.model.load import load_policy
from scorefast.model.plain_model import built_of_shapes, require_finite, require_plain_types
from scorefast.model.policy import save_policy
from scorefast.recipe import EMBEDDED_MODELS, load_recipe
from tests.conftest import SHIPPED, scorefast, scorefast_here

TINY = EMBEDDED_MODELS["tiny-gemma2"]
WEIGHT = "model.layers.0.mlp.up_proj.weight"
# What a generation_config.json or a config.json may say of sampling. Each changes what a model says, fails, or costs.
SAMPLING = {
    "min_new_tokens": 20,
    "min_length": 60,
    "max_length": 3,
    "max_time": 0.000001,
    "num_beams": 3,
    "num_return_sequences": 2,
    "no_repeat_ngram_size": 1,
    "encoder_no_repeat_ngram_size": 1,
    "repetition_penalty": 5.0,
    "encoder_repetition_penalty": 5.0,
    "length_penalty": 9.0,
    "typical_p": 0.1,
    "epsilon_cutoff": 0.5,
    "eta_cutoff": 0.5,
    "top_h": 0.1,
    "top_k": 1,
    "top_p": 0.01,
    "min_p": 0.9,
    "do_sample": True,
    "temperature": 9.0,
    "suppress_tokens": [*range(3, 200)],
    "begin_suppress_tokens": [*range(3, 200)],
    "bad_words_ids": [[token] for token in range(3, 200)],
    "force_words_ids": [[7]],
    "forced_bos_token_id": 7,
    "forced_eos_token_id": 7,
    "exponential_decay_length_penalty": [1, 9.0],
    "sequence_bias": [[[7], 50.0]],
    "guidance_scale": 9.0,
    "watermarking_config": {"bias": 9.0, "greenlist_ratio": 0.1},
    "renormalize_logits": True,
    "remove_invalid_values": True,
    "stop_strings": ["a", "e", " "],
    "penalty_alpha": 0.6,
    "dola_layers": "low",
    "cache_implementation": "static",
    "cache_config": {"backend": "quanto"},
    "assistant_early_exit": 1,
    "prompt_lookup_num_tokens": 3,
    "num_assistant_tokens": 5,
    "is_assistant": True,
    "token_healing": True,
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_attentions": True,
    "use_cache": False,
    "eos_token_id": [*range(3, 200)],
    "pad_token_id": 7,
    "bos_token_id": 7,
    "custom_generate": "somebody/loop",
    "compile_config": {"mode": "max-autotune"},
    "unheard_of": 1,
}


@pytest.fixture
def model(tmp_path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def rewrite(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def retensor(folder: Path, **tensors) -> None:
    weights = folder / "model.safetensors"
    save_file(load_file(weights) | tensors, weights, metadata={"format": "pt"})


def policy_of(folder: Path, **more):
    return load_policy(load_recipe("tiny-cpu", [f"model.name={folder}"]), **more)


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        policy_of(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def said(policy) -> list:
    prompts = [policy.chat.first_turn(f"What is {n} + 30?") for n in (7, 12)]
    found = []
    for temperature in (0.0, 1.0):
        torch.manual_seed(0)
        found += generate(policy, prompts, max_new_tokens=12, temperature=temperature, batch_size=2)
    return found


# --- sampling --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def expected() -> list:
    return said(policy_of(TINY))


@pytest.mark.parametrize("key", SAMPLING)
def test_a_folder_does_not_decide_how_it_is_sampled(model, expected, key):
    rewrite(model / "generation_config.json", **{key: SAMPLING[key]})
    policy = policy_of(model)
    assert said(policy) == expected
    assert getattr(policy.model.generation_config, key, None) in (
        None,
        getattr(type(policy.model.generation_config)(), key, None),
    )


def test_all_of_it_at_once_and_on_a_model_to_be_trained(model, expected):
    rewrite(model / "generation_config.json", **SAMPLING)
    policy = policy_of(model, trainable=True)  # an adapter that does nothing yet
    assert said(policy) == expected


@pytest.mark.parametrize(
    "key", [k for k in SAMPLING if not k.endswith("token_id") and k not in ("output_attentions", "compile_config")]
)
def test_nor_does_its_configuration(model, expected, key):
    rewrite(model / "config.json", **{key: SAMPLING[key]})
    assert said(policy_of(model)) == expected


def test_a_whole_model_that_is_saved_says_how_its_replies_end_and_nothing_else(model, tmp_path, chat):
    rewrite(model / "generation_config.json", **SAMPLING)
    (tmp_path / "out").mkdir()
    save_policy(load_policy(load_recipe("tiny-cpu", [f"model.name={model}", "model.tuning=full"])), tmp_path / "out")
    saved = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert saved.keys() <= {
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "transformers_version",
        "_from_model_config",
    }
    assert set(saved["eos_token_id"]) == chat.end_tokens


# --- attention, and code of others -----------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
@pytest.mark.parametrize(
    "value", ["flash_attention_2", "flex_attention", "paged|sdpa", "kernels-community/x", {"": "flash_attention_3"}]
)
@pytest.mark.parametrize("nested", [False, True])
def test_only_eager_and_sdpa_compute_attention(model, key, value, nested):
    rewrite(model / "config.json", **({"text_config": {key: value}} if nested else {key: value}))
    assert f"config.json: {key} is " in refused(model)


def test_what_names_kernels_has_no_effect_and_nothing_is_asked(model):
    """`scorefast` in conftest ends where a package of kernels is imported, or the network is reached for."""
    kernels = {"use_kernels": True, "allow_all_kernels": True, "use_mamba_kernels": True, "attn_implementation": "sdpa"}
    rewrite(model / "config.json", **kernels)
    done = scorefast("chat", "--set", f"model.name={model}", cwd=model, stdin="What is 1 + 2?\n")
    assert done.returncode == 0, done.stderr
    sound = scorefast("chat", "--recipe", "tiny-cpu", cwd=model, stdin="What is 1 + 2?\n")
    assert json.loads(done.stdout)["attempts"] == json.loads(sound.stdout)["attempts"]


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["int8", "uint8", "int32", "bool", "complex64", "float8_e4m3fn", "float8_e5m2"])
def test_weights_of_other_kinds_are_named(model, kind):
    scales = {
        WEIGHT.replace("weight", "weight_scale_inv"): torch.ones(1),
        WEIGHT.replace("weight", "SCB"): torch.ones(1),
    }
    retensor(model, **{WEIGHT: load_file(model / "model.safetensors")[WEIGHT].to(getattr(torch, kind))}, **scales)
    assert f"model.safetensors: {WEIGHT} is of type " in refused(model)


def test_buffers_that_older_models_saved_are_no_weights(model):
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    retensor(model, **{"h.0.attn.bias": mask, "embeddings.position_ids": torch.arange(4)[None]})
    require_plain_types(model)
    retensor(model, **{"h.0.attn.bias": torch.ones(4, dtype=torch.int32)})
    with pytest.raises(UserError, match=r"h\.0\.attn\.bias is of type I32"):
        require_plain_types(model)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_numbers_that_are_none_are_named(model, value, kind):
    weight = load_file(model / "model.safetensors")[WEIGHT].to(kind)
    retensor(model, **{WEIGHT: weight})
    require_finite(model)
    weight[-1, -1] = value
    retensor(model, **{WEIGHT: weight})
    assert f"model.safetensors: {WEIGHT} holds NaN or infinite values" in refused(model)


@pytest.mark.parametrize(
    "config",
    [
        {"quant_method": "gptq", "bits": 4, "group_size": 128},
        {"quant_method": "awq", "bits": 4},
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        {"quant_method": "compressed-tensors", "format": "int-quantized"},
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": True},
        {"quant_method": "unheard-of"},
        "gptq",
    ],
)
@pytest.mark.parametrize("place", ["quantization_config", "compression_config", "text_config"])
def test_other_quantizations_are_one_line(model, config, place):
    rewrite(model / "config.json", **{place: {"quantization_config": config} if place == "text_config" else config})
    assert "only bitsandbytes' 4 bit is supported" in refused(model)


def test_a_folder_in_four_bit_is_loaded_and_what_only_says_so_is_not(model, tmp_path):
    pytest.importorskip("bitsandbytes")
    quantized = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    rewrite(model / "config.json", quantization_config=quantized)
    assert "quantization_config is set, and no weights here are quantized" in refused(model)
    packed = Path(shutil.copytree(TINY, tmp_path / "packed"))
    four = AutoModelForCausalLM.from_pretrained(
        TINY, quantization_config=nf4(torch.float32), dtype=torch.float32, attn_implementation="eager"
    )
    keep_unpacked(four)
    four.save_pretrained(packed)
    ours = policy_of(packed)
    ids = torch.tensor([ours.chat.first_turn("What is 1 + 2?")])
    with torch.no_grad():
        torch.testing.assert_close(ours.model(ids).logits, four(ids).logits)
    weights = load_file(packed / "model.safetensors")
    scale = next(name for name, tensor in weights.items() if "absmax" in name and tensor.dtype == torch.float32)
    retensor(packed, **{scale: weights[scale] * float("nan")})
    assert f"{scale} holds NaN or infinite values" in refused(packed)


# --- what a configuration costs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_labels": 10**9}, "num_labels is 1000000000; at most 10000"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; at most 1000"),
        ({"text_config": {"num_experts": 10**9}}, "num_experts is 1000000000; at most 10000"),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings is 1000000000000"),
        ({"unheard_of": 10**12}, "unheard_of is 1000000000000"),
        ({"sliding_window": 0}, "sliding_window is 0; expected 1 or more"),
        ({"sliding_window": -4}, "sliding_window is -4; expected 1 or more"),
        ({"hidden_size": -64}, "hidden_size is -64; expected 1 or more"),
        ({"vocab_size": 0}, "vocab_size is 0; expected 1 or more"),
        ({"vocab_size": 10**8}, "the weights have"),
        ({"pad_token_id": 10**6}, "Padding_idx must be within num_embeddings"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan; expected a number"),
        ({"rms_norm_eps": -100.0}, "says NaN or infinity to a first question"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 0.0}}, "says NaN or infinity to a first question"),
        ({"id2label": {str(n): "a" for n in range(10)}, "num_labels": 10**5}, "num_labels is 100000"),
    ],
)
def test_numbers_that_no_model_has_are_refused_soon(model, changes, message):
    rewrite(model / "config.json", **changes)
    started = time.monotonic()
    assert message in refused(model)
    assert time.monotonic() - started < 20


def test_time_and_memory_for_a_configuration_are_bounded(model, monkeypatch):
    """Of what no rule above names: reading it, and building its model."""
    monkeypatch.setattr(plain_model, "_require_sane", lambda *_: None)
    monkeypatch.setattr(plain_model, "CONFIG_WORK", (1.0, 2**28))
    rewrite(model / "config.json", num_labels=10**9)
    assert "more than 1 seconds" in (line := refused(model)) or "MemoryError" in line
    config = AutoConfig.from_pretrained(TINY)
    config.num_hidden_layers, config.layer_types = 10**6, ["full_attention"] * 10**6
    with pytest.raises((RuntimeError, MemoryError)):
        built_of_shapes(config)


def test_a_plan_is_bounded_too(model):
    rewrite(model / "config.json", num_hidden_layers=10**9)
    flags = ["--recipe", "tiny-cpu", "--set", f"model.name={model}", "--dry-run"]
    done = scorefast_here("stage1", "--data", SHIPPED, *flags, cwd=model)
    assert done.returncode == 2
    assert "num_hidden_layers is 1000000000" in done.stderr
