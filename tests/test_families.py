"""Other families than Gemma-2 through the same code: what differs is read from the model, never from its name."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import transformers
from rich.console import Console
from transformers import AutoTokenizer

from scorefast import train
from scorefast.data.load import load_dataset
from scorefast.errors import UserError
from scorefast.model.generate import generate
from scorefast.model.load import load_policy
from scorefast.recipe import load_recipe, model_path
from scorefast.rl.batch import collate
from scorefast.rl.loss import micro_batch_loss
from scorefast.rl.objective import TurnCoefficients
from scorefast.rl.rollout import two_turn_rollout
from scorefast.runs.checkpoint import open_checkpoint
from scorefast.runs.job import Job
from scorefast.runs.log import read_metrics
from tests.conftest import SHIPPED
from tests.test_prompts import CHATML, CHATML_TOKENS, LLAMA3, LLAMA3_TOKENS, TOOL, byte_level

SMOLLM2 = (  # SmolLM2-Instruct's own: ChatML with a default system prompt
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN3 = (  # the part of Qwen3's that a conversation without tools meets: it takes earlier thoughts out of replies
    "{%- for message in messages %}{%- if message.role == 'user' %}"
    "{{- '<|im_start|>user\n' + message.content + '<|im_end|>\n' }}{%- else %}"
    "{%- set content = message.content.split('</think>')[-1].lstrip('\n') %}"
    "{{- '<|im_start|>assistant\n' + content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
# family -> (configuration class, what sets it apart, tokenizer)
FAMILIES = {
    "gemma-2": ("Gemma2Config", {"query_pre_attn_scalar": 8, "sliding_window": 64}, None),
    "gemma-3": ("Gemma3TextConfig", {"query_pre_attn_scalar": 8, "sliding_window": 64}, None),
    "gemma-3-with-vision": ("Gemma3Config", {"query_pre_attn_scalar": 8, "sliding_window": 64}, None),
    "qwen2.5": ("Qwen2Config", {"tie_word_embeddings": True}, CHATML),
    "qwen2.5-untied": ("Qwen2Config", {"tie_word_embeddings": False}, CHATML),
    "qwen3": ("Qwen3Config", {"tie_word_embeddings": True}, QWEN3),
    "llama-3.2": ("LlamaConfig", {"tie_word_embeddings": True, "rope_parameters": LLAMA3_ROPE}, LLAMA3),
    "llama-3-untied": ("LlamaConfig", {"tie_word_embeddings": False}, LLAMA3),
    "llama-with-dropout": ("LlamaConfig", {"attention_dropout": 0.3}, LLAMA3),
    "smollm2": ("LlamaConfig", {"tie_word_embeddings": True}, SMOLLM2),
}


def tokenizer_of(template):
    if template is None:
        return AutoTokenizer.from_pretrained(model_path("tiny-gemma2"))
    if template is LLAMA3:
        return byte_level(LLAMA3, LLAMA3_TOKENS, [], bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>")
    return byte_level(template, CHATML_TOKENS, TOOL, eos_token="<|im_end|>", pad_token="<|endoftext|>")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """(name, recipe) of a model folder with random weights, large enough for every layer to matter."""
    config_class, special, template = FAMILIES[request.param]
    tokenizer = tokenizer_of(template)
    text = SHAPE | special | {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    text |= {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    if config_class == "Gemma3Config":
        vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        vision |= {"image_size": 28, "patch_size": 14}
        config = transformers.Gemma3Config(text_config=text, vision_config=vision)
        model_class = transformers.Gemma3ForConditionalGeneration
    else:
        config = getattr(transformers, config_class)(**text)
        model_class = transformers.AutoModelForCausalLM
    torch.manual_seed(0)
    model = model_class.from_config(config) if model_class is transformers.AutoModelForCausalLM else model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
    folder = tmp_path_factory.mktemp("family") / request.param
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    flags = [f"model.name={folder}", "model.max_seq_length=512", "rollout.max_new_tokens=10", "eval.max_questions=4"]
    flags += ["reward.function=tests.test_families:vowels", "loss.impl=chunked"]
    for stage in ("stage1", "stage2"):
        flags += [f"{stage}.max_steps=2", f"{stage}.questions_per_step=2", f"{stage}.samples_per_question=4"]
        flags += [f"{stage}.learning_rate=0.01", f"{stage}.warmup_steps=0", f"{stage}.eval_steps=2"]
    return request.param, load_recipe("tiny-cpu", flags)


def vowels(completions, **columns):
    """A reward that random text earns differing amounts of."""
    return [sum(c in "aeiou 0123456789" for c in reply[0]["content"]) / 10 for reply in completions]


def test_both_stages_train_evaluate_and_reload(family, tmp_path):
    _, recipe = family
    dataset = load_dataset(str(SHIPPED), recipe.data)
    start = None
    for section in ("stage1", "stage2"):
        folder = tmp_path / section
        job = train.check(Job(section, recipe, dataset, start, folder))
        train.check_lengths(job)
        folder.mkdir()
        (folder / "run.json").write_text("{}")
        train.run(job, Console(quiet=True))
        steps = [m for m in read_metrics(folder) if "loss" in m]
        assert len(steps) == 2
        if section == "stage1":
            assert abs(steps[0]["kl_t1"]) < 1e-6, "policy and reference are the same model before the first step"
        assert steps[1]["kl_t1"] > 1e-6
        assert steps[0]["grad_norm"] > 0
        start = open_checkpoint(str(folder))
    base, trained = load_policy(recipe), load_policy(recipe, start)
    prompts = [base.chat.first_turn(e.question) for e in dataset.splits["test"][:4]]
    greedy = partial(generate, max_new_tokens=10, temperature=0.0, batch_size=3)
    assert greedy(trained, prompts) == greedy(load_policy(recipe, start), prompts)
    ids = torch.tensor([prompts[0]])
    with torch.no_grad():
        assert (base.model(input_ids=ids).logits - trained.model(input_ids=ids).logits).abs().max() > 1e-3


def test_the_loss_is_that_of_the_models_own_logits(family):
    """Soft cap or none, tied head or not: against log_softmax of what the model itself returns."""
    name, recipe = family
    policy = load_policy(recipe, trainable=True)
    assert (policy.softcap is None) == (name != "gemma-2")
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter_name, parameter in policy.model.named_parameters():
            if "lora_B" in parameter_name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    torch.manual_seed(0)
    examples = load_dataset(str(SHIPPED), recipe.data).splits["train"][:4]
    sample = partial(generate, policy, max_new_tokens=10, temperature=1.0, batch_size=4)
    trajectories = two_turn_rollout(sample, policy.chat, examples)
    coefs = TurnCoefficients(torch.tensor([[0.5, -1.0]] * 4), torch.tensor([[0.3, 0.7]] * 4))
    batch = collate(trajectories, coefs, policy.tokenizer.pad_token_id)
    loss, _, _ = micro_batch_loss(policy.model, policy, batch, recipe)
    adapted = [p for p in policy.model.parameters() if p.requires_grad]
    ours = torch.autograd.grad(loss, adapted)

    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    logp = policy.model(**inputs).logits.log_softmax(-1)[:, :-1]
    with torch.no_grad(), policy.model.disable_adapter():
        ref_logp = policy.model(**inputs).logits.log_softmax(-1)[:, :-1]
    taken = logp.gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    kl = (logp.exp() * (logp - ref_logp)).sum(-1)
    expected = (-batch["pg_coef"][:, 1:] * taken + batch["kl_coef"][:, 1:] * kl).sum()
    theirs = torch.autograd.grad(expected, adapted)
    assert kl[batch["turn"][:, 1:] > 0].mean() > 1e-3, "the reference is another distribution"
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_replies_end_where_the_template_closes_them(family):
    name, recipe = family
    policy = load_policy(recipe)
    end = policy.tokenizer.convert_ids_to_tokens(policy.chat.end_of_turn)
    expected = "<end_of_turn>" if name.startswith("gemma") else "<|eot_id|>" if "llama" in name else "<|im_end|>"
    assert end == expected


@pytest.mark.parametrize("scale", [1.02, 4.0])
def test_a_model_that_scales_its_logits_is_refused(scale, tmp_path):
    """The loss computes logits itself: Granite's are divided once more."""
    tokenizer = tokenizer_of(LLAMA3)
    config = transformers.GraniteConfig(**SHAPE, vocab_size=len(tokenizer), logits_scaling=scale)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    recipe = load_recipe("tiny-cpu", [f"model.name={tmp_path}", "model.dtype=bfloat16"])
    with pytest.raises(UserError, match="granite: its output head scales or shifts logits"):
        load_policy(recipe, trainable=True)


def test_a_model_without_layers_for_lora_is_one_line(tmp_path):
    tokenizer = tokenizer_of(LLAMA3)
    config = transformers.MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=len(tokenizer))
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="cannot be given LoRA adapters"):
        load_policy(load_recipe("tiny-cpu", [f"model.name={tmp_path}"]), trainable=True)


def test_a_model_that_draws_in_training_is_refused(tmp_path):
    """Falcon reads its dropout from the configuration, in every pass."""
    tokenizer = tokenizer_of(LLAMA3)
    config = transformers.FalconConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=len(tokenizer), hidden_dropout=0.5
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="falcon: draws at random in training"):
        load_policy(load_recipe("tiny-cpu", [f"model.name={tmp_path}"]), trainable=True)
