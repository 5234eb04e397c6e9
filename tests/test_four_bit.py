"""4-bit layers on every CPU: one function in sampling and in training, and the gradient that it has."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoTokenizer, Gemma2Config, Gemma2ForCausalLM

from scorefast.errors import UserError
from scorefast.model import four_bit
from scorefast.model.checks import require_trained_as_sampled
from scorefast.model.generate import generate
from scorefast.model.load import load_policy
from scorefast.model.policy import last_hidden
from scorefast.recipe import load_recipe, model_path
from tests.conftest import NO_NETWORK, QUICK, REPOSITORY, SHIPPED, scorefast

modules = pytest.importorskip("bitsandbytes.nn.modules", reason="bitsandbytes is not installed")
functional = pytest.importorskip("bitsandbytes.functional")
PACKS = functional.has_avx512bf16()


def four_bit_recipe(*keys: str):
    return load_recipe("tiny-cpu", ["model.load_in_4bit=true", "rollout.max_new_tokens=40", *keys])


@pytest.fixture(scope="module")
def odd_width(tmp_path_factory):
    """Widths that are no multiple of bitsandbytes' block of 64, nor of the packing's 32: name -> folder."""
    folders = {}
    for width in (96, 100):
        folder = tmp_path_factory.mktemp("odd") / str(width)
        tokenizer = AutoTokenizer.from_pretrained(model_path("tiny-gemma2"))
        torch.manual_seed(0)
        shape = {"hidden_size": width, "intermediate_size": width + 64, "num_hidden_layers": 2, "head_dim": 20}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "query_pre_attn_scalar": 20}
        ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
        Gemma2ForCausalLM(Gemma2Config(vocab_size=len(tokenizer), **shape, **heads, **ids)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders[width] = folder
    return folders


def gradients_after_a_generation(policy) -> dict[str, torch.Tensor]:
    """d sum(hidden^2) / d weights, with adapters that do something, in training mode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    prompt = policy.chat.first_turn("What is 123 + 456?")
    generate(policy, [prompt], max_new_tokens=3, temperature=0.0, batch_size=1)
    policy.model.train()
    ids = torch.tensor([prompt])
    last_hidden(policy.model, ids, torch.ones_like(ids)).square().sum().backward()
    return {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("width", ["shipped", 96, 100])
def test_whatever_the_processor_the_gradient_is_that_of_dequantised_weights(width, odd_width, monkeypatch):
    """bitsandbytes' detection is forced both ways; the weights are never packed, and the results are the same bits."""
    keys = [] if width == "shipped" else [f"model.name={odd_width[width]}"]
    found = []
    for packs in (True, False):
        monkeypatch.setattr(modules, "has_avx512bf16", lambda packs=packs: packs)
        policy = load_policy(four_bit_recipe(*keys), trainable=True)
        found.append(gradients_after_a_generation(policy))
        layers = [layer for _, _, layer in four_bit.layers(policy.model)]
        assert len(layers) == 7 * policy.model.config.num_hidden_layers
        assert not any(getattr(layer.weight.quant_state, "packing_format_for_cpu", False) for layer in layers)
    with four_bit.in_plain_arithmetic(policy.model):
        policy.model.zero_grad()
        truth = gradients_after_a_generation(policy)
    assert [layer for _, _, layer in four_bit.layers(policy.model)] == layers, "the layers are put back"
    assert truth.keys() == found[0].keys()
    assert any("lora_A" in name for name in truth)
    for name, gradient in truth.items():
        assert torch.equal(found[0][name], found[1][name]), name
        torch.testing.assert_close(found[0][name], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item())
        assert gradient.norm() > 0, name


@pytest.mark.parametrize("projection", ["q_proj", "o_proj", "down_proj"])
def test_a_layer_that_keeps_the_gradient_from_its_input_is_refused(projection):
    """As the packed one does. In the topmost decoder layer alone; what is below still learns through residuals."""
    policy = load_policy(four_bit_recipe(), trainable=True)
    require_trained_as_sampled(policy)
    names = {id(module): name for name, module in policy.model.named_modules()}
    *_, layer = (layer for parent, _, layer in four_bit.layers(policy.model) if projection in names[id(parent)])
    layer.register_forward_hook(lambda module, given, out: out.detach())
    training = [module.training for module in policy.model.modules()]
    with pytest.raises(UserError, match=r"its 4-bit layers give a wrong gradient here \(\S+lora_B\S+: .*should be"):
        require_trained_as_sampled(policy)
    assert [module.training for module in policy.model.modules()] == training


@pytest.mark.skipif(not PACKS, reason="this CPU has no AVX512-BF16, for which bitsandbytes packs weights")
def test_packed_weights_are_refused(monkeypatch):
    """The fault itself, on a processor that has it."""
    monkeypatch.setattr(four_bit, "keep_unpacked", lambda model: None)
    with pytest.raises(UserError, match="its 4-bit layers give a wrong gradient here"):
        load_policy(four_bit_recipe(), trainable=True)


@pytest.mark.parametrize("four", [True, False])
def test_a_model_that_samples_from_another_distribution_than_it_trains_on_is_refused(four):
    """In single-token passes alone, as a kernel for few rows would."""
    policy = load_policy(four_bit_recipe() if four else load_recipe("tiny-cpu"), trainable=True)
    norm = policy.model.get_base_model().model.norm
    norm.register_forward_hook(lambda module, given, out: out.flip(-1) if out.shape[1] == 1 else out)
    with pytest.raises(UserError, match=r"gemma2: samples from another distribution than it trains on \(KL [\d.e+]+\)"):
        require_trained_as_sampled(policy)


def test_a_checkpoint_says_the_same_before_a_generation_and_after(odd_width):
    """Evaluation too keeps the exact layers: what it says depends on no processor."""
    for keys in ([], [f"model.name={odd_width[96]}"]):
        policy = load_policy(four_bit_recipe(*keys))
        ids = torch.tensor([policy.chat.first_turn("What is 12 + 30?")])
        with torch.no_grad():
            before = policy.model(input_ids=ids).logits
            generate(policy, ids.tolist(), max_new_tokens=3, temperature=0.0, batch_size=1)
            torch.testing.assert_close(policy.model(input_ids=ids).logits, before, rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["transformers", "unsloth"])
def test_a_kernels_package_is_never_imported_and_nothing_is_said_of_it(backend, tmp_path):
    """`scorefast` in conftest has one on its path that ends the process. bitsandbytes imports it on CPUs with
    AVX512-BF16, transformers and Unsloth may on any, and bitsandbytes warns where there is none."""
    flags = [*QUICK, "--set", "model.load_in_4bit=true", "--set", f"model.backend={backend}", "--quiet"]
    done = scorefast("stage1", "--data", SHIPPED, *flags, "--out", "run", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "run\n", "")


@pytest.mark.skipif(not PACKS, reason="this CPU has no AVX512-BF16, for which bitsandbytes asks for kernels")
def test_the_kernels_package_in_the_way_ends_a_process_that_imports_it():
    command = [sys.executable, "-c", "import bitsandbytes"]
    environment = os.environ | {"PYTHONPATH": str(NO_NETWORK)}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 97
    assert "kernels: imported" in done.stderr
