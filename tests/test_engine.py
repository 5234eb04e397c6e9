"""The rollout engine: token by token what `generate` writes, whatever shares a pass, and log p as the loss has it."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers

from scorefast.data.load import load_dataset
from scorefast.errors import UserError
from scorefast.kernels.reference import log_softmax_head
from scorefast.model import attention, decoder, engine
from scorefast.model.decoder import can_serve
from scorefast.model.engine import Engine, Noise, draw
from scorefast.model.generate import generate
from scorefast.model.load import load_policy
from scorefast.model.merged import merged_lora
from scorefast.model.policy import last_hidden
from scorefast.recipe import load_recipe
from scorefast.rl.rollout import generator, two_turn_rollout
from tests.conftest import SHIPPED, scorefast
from tests.test_families import FAMILIES, LLAMA3, SHAPE, tokenizer_of

NEW = 10
NOISE = Noise(seed=3, step=7)


class EndsOften:
    """A chat format in which more tokens end a reply, for random models: they would go on to the limit."""

    def __init__(self, chat, every):
        self.chat, self.tokenizer, self.next_turn = chat, chat.tokenizer, chat.next_turn
        self.end_tokens = chat.end_tokens | set(range(3, len(chat.tokenizer), every))


def saved(folder, config_class, special, tokenizer):
    """A model folder with random weights, large enough for every layer to matter."""
    text = SHAPE | special | {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    text |= {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    if config_class == "Gemma3Config":
        vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = transformers.Gemma3Config(
            text_config=text, vision_config=vision | {"image_size": 28, "patch_size": 14}
        )
        model = transformers.Gemma3ForConditionalGeneration(config)
    else:
        model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config_class)(**text))
    torch.manual_seed(0)
    embedding = 0.2 if "Gemma" in config_class else 1.0  # Gemma scales it up, and would say its last token again
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=(embedding if "embed" in name else 1.0) * parameter.shape[1] ** -0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def with_adapters_that_matter(policy):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return policy


def policy_in(folder, *keys, trainable=True, every=20):
    recipe = load_recipe("tiny-cpu", [f"model.name={folder}", "model.max_seq_length=512", *keys])
    policy = with_adapters_that_matter(load_policy(recipe, trainable=trainable))
    return replace(policy, chat=EndsOften(policy.chat, every))


@pytest.fixture(scope="module", params=[*FAMILIES, "gemma-2-window-7", "gemma-3-window-7", "mistral-window-7"])
def family(request, tmp_path_factory):
    name, _, window = request.param.partition("-window-")
    config_class, special, template = {**FAMILIES, "mistral": ("MistralConfig", {}, LLAMA3)}[name]
    special = special | ({"sliding_window": int(window), "attn_logit_softcapping": 2.0} if window else {})
    return policy_in(saved(tmp_path_factory.mktemp("engine"), config_class, special, tokenizer_of(template)))


@pytest.fixture(scope="module")
def tiny():
    """The embedded model with adapters, which answers and ends its replies."""
    return with_adapters_that_matter(load_policy(load_recipe("tiny-cpu", []), trainable=True))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Random Gemma-2 with a window shorter than a prompt, and replies of many lengths."""
    special = {"query_pre_attn_scalar": 8, "sliding_window": 7, "attn_logit_softcapping": 2.0}
    return policy_in(saved(tmp_path_factory.mktemp("small"), "Gemma2Config", special, tokenizer_of(None)))


def questions(policy, count):
    chat = getattr(policy.chat, "chat", policy.chat)
    examples = load_dataset(str(SHIPPED), load_recipe("tiny-cpu", []).data).splits["train"][:count]
    return [chat.first_turn(f"{e.question} {'Please! ' * (i % 3)}") for i, e in enumerate(examples)]


def turns_of(policy, count):
    """How many turns conversation i takes: 1 to `count`, in turn."""

    def follow(index, replies):
        return policy.chat.next_turn(replies[-1].ids) if len(replies) <= index % count else None

    return follow


def by_generate(policy, prompts, samples, turns, new=NEW):
    asked = [prompt for prompt in prompts for _ in range(samples)]
    found = [[] for _ in asked]
    for turn in range(turns):
        due = [i for i in range(len(asked)) if turn <= i % turns]
        made = generate(policy, [asked[i] for i in due], max_new_tokens=new, temperature=0.0, batch_size=4)
        for i, ids in zip(due, made, strict=True):
            found[i].append(ids)
            asked[i] = [*asked[i], *ids, *policy.chat.next_turn(ids)]
    return found


def ids_of(conversations):
    return [[reply.ids for reply in replies] for replies in conversations]


def sampled(policy, prompts, slots, samples=4, noise=NOISE, turns=2, temperature=0.8, **settings):
    own = Engine(policy, slots, NEW, **settings)
    return own.converse(prompts, samples, turns_of(policy, turns), temperature=temperature, noise=noise)


@pytest.mark.parametrize(("slots", "merge"), [(3, False), (64, True)])
def test_greedy_replies_are_those_of_generate(family, slots, merge):
    """With slots refilled; one to three turns; replies cut off, and ended by other tokens than the template's."""
    assert can_serve(family) is None
    prompts = questions(family, 7)
    own = Engine(family, slots, NEW, merge=merge)
    made = own.converse(prompts, 2, turns_of(family, 3), temperature=0.0)
    expected = by_generate(family, prompts, 2, 3)
    assert ids_of(made) == expected
    lengths = {len(ids) for replies in expected for ids in replies}
    assert NEW in lengths
    assert len(lengths) >= 3
    assert [len(replies) for replies in made] == [i % 3 + 1 for i in range(14)]


def test_the_window_and_the_cap_matter(small):
    """Else the comparison above would not see them."""
    prompts = questions(small, 4)
    before = by_generate(small, prompts, 1, 1)
    config = small.model.get_decoder().config
    attentions = [module for module in small.model.modules() if hasattr(module, "attn_logit_softcapping")]
    config.sliding_window = 64
    try:
        assert by_generate(small, prompts, 1, 1) != before
    finally:
        config.sliding_window = 7
    for module in attentions:
        module.attn_logit_softcapping = 50.0
    try:
        assert by_generate(small, prompts, 1, 1) != before
    finally:
        for module in attentions:
            module.attn_logit_softcapping = 2.0


@pytest.mark.parametrize(("count", "samples", "slots"), [(1, 1, 8), (1, 5, 2), (9, 1, 4), (6, 3, 64)])
def test_the_embedded_model_greedily(tiny, count, samples, slots):
    prompts = questions(tiny, count)
    made = Engine(tiny, slots, 30).converse(prompts, samples, turns_of(tiny, 2), temperature=0.0)
    assert ids_of(made) == by_generate(tiny, prompts, samples, 2, new=30)


def test_a_reply_that_ends_with_plain_eos_is_closed_in_the_next_turn(small):
    prompts, ends = questions(small, 6), small.chat.chat.end_of_turn
    made = Engine(small, 4, NEW).converse(prompts, 1, turns_of(small, 2), temperature=0.0)
    plain = [replies for replies in made[1::2] if replies[0].ids[-1] in small.chat.end_tokens - {ends}]
    assert plain, "some first replies end otherwise than the template has it"
    assert len(small.chat.next_turn(plain[0][0].ids)) > len(small.chat.next_turn([ends]))
    assert ids_of(made) == by_generate(small, prompts, 1, 2)


@pytest.mark.parametrize("other", [{"slots": 64}, {"slots": 1}, {"slots": 4, "prefill_tokens": 5}, {"merge": False}])
def test_samples_do_not_depend_on_what_is_computed_beside_them(small, other):
    prompts = questions(small, 5)
    made, again = sampled(small, prompts, 4), sampled(small, prompts, **{"slots": 4, **other})
    assert ids_of(made) == ids_of(again)
    for replies, others in zip(made, again, strict=True):
        for a, b in zip(replies, others, strict=True):
            assert a.logp == pytest.approx(b.logp, abs=1e-4)


def test_samples_of_a_question_differ_and_so_do_steps(small):
    prompts = questions(small, 3)
    made = ids_of(sampled(small, prompts, 8))
    assert len({str(replies[0]) for replies in made[:4]}) > 1
    assert made != ids_of(sampled(small, prompts, 8, noise=Noise(3, 8)))
    assert made != ids_of(sampled(small, prompts, 8, noise=Noise(4, 7)))


def test_two_processes_sample_what_one_would(small):
    prompts = questions(small, 4)
    whole = ids_of(sampled(small, prompts, 8))
    first = ids_of(sampled(small, prompts[:2], 8, noise=replace(NOISE, conversations=range(8))))
    second = ids_of(sampled(small, prompts[2:], 8, noise=replace(NOISE, conversations=range(8, 16))))
    assert first + second == whole


def test_noise_is_addressed_by_place():
    row = NOISE.uniforms(5, 1, 20)
    assert row.dtype == np.float64
    assert np.array_equal(NOISE.uniforms(5, 1, 8), row[:8])
    assert np.array_equal(Noise(3, 7, conversations=[9, 5]).uniforms(1, 1, 20), row)
    others = [NOISE.uniforms(4, 1, 20), NOISE.uniforms(5, 0, 20), Noise(3, 8).uniforms(5, 1, 20)]
    assert len({*row, *(u for other in others for u in other)}) == 80
    many = np.concatenate([NOISE.uniforms(i, t, 100) for i in range(50) for t in (0, 1)])
    assert abs(many.mean() - 0.5) < 0.01


def test_tokens_are_drawn_in_proportion_to_their_probability(monkeypatch):
    monkeypatch.setattr("scorefast.model.engine.CDF_CELLS", 7 * 1000)  # in blocks
    logits, count = torch.tensor([0.0, 3.0, -1.0, 2.0, -30.0, 1.0, 0.5]), 20_000
    grid = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    token, logp = draw(logits.expand(count, -1), 0.7, grid)
    p = (logits / 0.7).softmax(-1)
    assert (token.bincount(minlength=7) / count - p).abs().max() <= 1 / count
    torch.testing.assert_close(logp, p.log()[token])
    assert draw(logits[None], 0.7, torch.tensor([1.0 - 2**-53], dtype=torch.float64))[0].item() == 6
    assert draw(logits[None], 0.0, grid[:1])[0].item() == 1


def test_log_p_is_that_of_the_training_forward(family):
    prompts = questions(family, 4)
    made = sampled(family, prompts, 3, samples=2)
    family.model.train()
    for i, replies in enumerate(made):
        ids = prompts[i // 2]
        for reply in replies:
            whole = torch.tensor([[*ids, *reply.ids]])
            with torch.no_grad():
                hidden = last_hidden(family.model, whole, torch.ones_like(whole))[0, len(ids) - 1 : -1]
            logp = log_softmax_head(hidden, family.head, family.softcap, 0.8)
            expected = logp.gather(1, torch.tensor(reply.ids)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(reply.logp), expected, rtol=0, atol=1e-4)
            ids = [*ids, *reply.ids, *family.chat.next_turn(reply.ids)]
    family.model.eval()


def test_greedy_tokens_are_certain(small):
    made = sampled(small, questions(small, 2), 8, temperature=0.0)
    assert {p for replies in made for reply in replies for p in reply.logp} == {0.0}


def test_prompts_are_computed_once_and_ended_replies_no_further(small):
    prompts, turn = questions(small, 5), len(small.chat.next_turn([]))
    own = Engine(small, 1, NEW, prefill_tokens=1)
    made = own.converse(prompts, 3, turns_of(small, 2), temperature=1.0, noise=NOISE)
    replies = [reply.ids for conversation in made for reply in conversation]
    followed = [conversation[0].ids for conversation in made[1::2]]
    fed = sum(1 + len(small.chat.next_turn(ids)) for ids in followed)
    assert own.work.prefill_tokens == sum(map(len, prompts)) + fed, "each prompt once, and no reply again"
    assert own.work.decode_tokens == sum(len(ids) - 1 for ids in replies)
    wide = Engine(small, 16, NEW)
    wide.converse(prompts, 3, turns_of(small, 2), temperature=1.0, noise=NOISE)
    assert wide.work.decode_tokens < 1.3 * own.work.decode_tokens
    assert wide.work.prefill_tokens < 1.6 * (sum(map(len, prompts)) + len(followed) * (turn + 1))
    assert wide.work.decode_passes < own.work.decode_passes / 4


@pytest.mark.parametrize("bound", [4096, 8])
def test_what_all_prompts_begin_with_is_computed_once(small, monkeypatch, bound):
    prompts = [[2, *range(20, 50), *prompt] for prompt in questions(small, 5)]
    assert engine.shared_beginning(prompts[:1]) == engine.shared_beginning(prompts) == 0, "too few to save a pass"
    monkeypatch.setattr(engine, "WORTH_A_PASS", 100)
    shared = engine.shared_beginning(prompts)
    assert 31 < shared < min(map(len, prompts))
    assert engine.shared_beginning([[1] * 30] * 9) == 29
    own = Engine(small, 4, NEW, prefill_tokens=bound)
    made = own.converse(prompts, 1, temperature=0.0)
    assert ids_of(made) == by_generate(small, prompts, 1, 1)
    if bound == 8:
        assert own.work.prefill_tokens == shared + sum(len(prompt) - shared for prompt in prompts)


def test_a_pass_over_prompts_is_bounded(small, monkeypatch):
    seen = []
    forward = small.model.get_decoder().forward

    def watched(input_ids, **others):
        seen.append(input_ids.shape)
        return forward(input_ids=input_ids, **others)

    monkeypatch.setattr(small.model.get_decoder(), "forward", watched)
    sampled(small, questions(small, 5), 8, prefill_tokens=48)
    fed = [rows * length for rows, length in seen if length > 1]
    assert max(fed) <= 48
    assert len({rows for rows, _ in seen}) > 2


def test_progress_is_told(small):
    passes, ended = [], []
    own = Engine(small, 4, NEW)
    own.converse(
        questions(small, 3),
        2,
        turns_of(small, 2),
        temperature=0.0,
        on_token=lambda: passes.append(1),
        on_replies=ended.append,
    )
    assert sum(ended) == 3 + 2 * 3
    assert len(passes) >= own.work.decode_passes
    assert Engine(small, 4, NEW).converse([], 2, temperature=0.0) == []
    with pytest.raises(ValueError, match="samples need noise"):
        Engine(small, 4, NEW).converse([[5]], 1, temperature=1.0)


@pytest.mark.parametrize("merge", [False, True])
def test_an_interrupt_leaves_the_model_as_it_was(small, merge):
    class Interrupted(Exception):
        pass

    def interrupt():
        calls.append(1)
        if len(calls) == 4:
            raise Interrupted

    def state():
        weights = [(name, id(p), p.data_ptr(), p.requires_grad) for name, p in small.model.named_parameters()]
        kinds = [(name, type(module), module.training) for name, module in small.model.named_modules()]
        return weights, kinds, small.model.config.use_cache, small.model.get_decoder().config._attn_implementation

    calls = []
    small.model.train()
    small.model.get_decoder().layers[0].eval()
    before = state()
    with pytest.raises(Interrupted):
        Engine(small, 4, NEW, merge=merge).converse(questions(small, 3), 2, temperature=0.0, on_token=interrupt)
    assert state() == before
    assert torch.is_grad_enabled()
    small.model.eval()


def test_a_prompt_without_room_is_refused_as_generate_does(small):
    cramped, prompt = replace(small, max_length=40), [5] * 31
    with pytest.raises(UserError) as theirs:
        generate(cramped, [prompt], max_new_tokens=NEW, temperature=0.0, batch_size=1)
    with pytest.raises(UserError) as ours:
        Engine(cramped, 4, NEW).converse([prompt, [5]], 2, temperature=0.0)
    assert str(ours.value) == str(theirs.value)
    with pytest.raises(UserError, match=r"a prompt of \d+ tokens and 10 new ones exceed model.max_seq_length = 40"):
        Engine(cramped, 4, NEW).converse([prompt[:30]], 2, turns_of(small, 2), temperature=0.0)


def test_merged_weights_are_the_same_function_and_leave_the_very_same_tensors(small):
    ids = torch.tensor([questions(small, 1)[0]])
    kept = {name: (p, p.data_ptr(), p.detach().clone()) for name, p in small.model.named_parameters()}
    with torch.no_grad():
        expected = small.model(input_ids=ids).logits
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012, SIM117
            with merged_lora(small.model) as count:
                assert count == 2 * 7
                assert not any(hasattr(module, "lora_A") for module in small.model.modules())
                torch.testing.assert_close(small.model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
                raise KeyboardInterrupt
        assert torch.equal(small.model(input_ids=ids).logits, expected)
    for name, parameter in small.model.named_parameters():
        before, place, bits = kept.pop(name)
        assert parameter is before
        assert parameter.data_ptr() == place
        assert torch.equal(parameter, bits)
    assert not kept
    with small.model.disable_adapter(), merged_lora(small.model) as count:
        assert count == 0, "the reference is the base"


def test_in_bfloat16(tmp_path):
    """Adapters are not merged, and log p is the training forward's but for rounding."""
    special = {"query_pre_attn_scalar": 8, "sliding_window": 7}
    policy = policy_in(saved(tmp_path, "Gemma2Config", special, tokenizer_of(None)), "model.dtype=bfloat16")
    assert can_serve(policy) is None
    with merged_lora(policy.model) as count:
        assert count == 0
    prompts = questions(policy, 3)
    apart = []
    for i, (reply, *_) in enumerate(sampled(policy, prompts, 4, samples=2)):
        whole = torch.tensor([[*prompts[i // 2], *reply.ids]])
        with torch.no_grad():
            hidden = last_hidden(policy.model, whole, torch.ones_like(whole))[0, len(prompts[i // 2]) - 1 : -1]
        logp = log_softmax_head(hidden, policy.head, policy.softcap, 0.8)
        apart += (logp.gather(1, torch.tensor(reply.ids)[:, None])[:, 0] - torch.tensor(reply.logp)).abs().tolist()
    assert np.mean(apart) < 0.05


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_in_4_bit():
    policy = with_adapters_that_matter(
        load_policy(load_recipe("tiny-cpu", ["model.load_in_4bit=true"]), trainable=True)
    )
    assert can_serve(policy) is None
    with merged_lora(policy.model) as count:
        assert count == 0
    prompts = questions(policy, 4)
    made = Engine(policy, 3, 20).converse(prompts, 2, turns_of(policy, 2), temperature=0.0)
    assert ids_of(made) == by_generate(policy, prompts, 2, 2, new=20)


def test_a_fully_tuned_model():
    policy = load_policy(load_recipe("tiny-cpu", ["model.tuning=full"]), trainable=True)
    assert can_serve(policy) is None
    prompts = questions(policy, 3)
    made = Engine(policy, 4, 20).converse(prompts, 2, turns_of(policy, 2), temperature=0.0)
    assert ids_of(made) == by_generate(policy, prompts, 2, 2, new=20)


def test_a_model_that_reads_no_attention_interface_is_named(tmp_path):
    tokenizer = tokenizer_of(LLAMA3)
    config = transformers.MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=len(tokenizer))
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    policy = load_policy(load_recipe("tiny-cpu", [f"model.name={tmp_path}"]))
    assert can_serve(policy).startswith("mamba: ")


@pytest.mark.parametrize(
    ("altered", "reason"),
    [({"softcap": None}, "its logits from slots differ by"), ({"scaling": 0.5}, "its logits from slots differ by")],
)
def test_attention_that_is_another_function_is_seen(small, monkeypatch, altered, reason):
    true = attention.attend
    monkeypatch.setattr(attention, "attend", lambda *args, **kwargs: true(*args, **{**kwargs, **altered}))
    assert reason in can_serve(small)
    monkeypatch.undo()
    assert can_serve(small) is None


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("layer_types", ["full_attention", "chunked_attention"], "has layers of the kind chunked_attention"),
        ("rope_parameters", {"rope_type": "dynamic"}, "has rotary frequencies that change with length (dynamic)"),
    ],
)
def test_layers_of_another_kind_are_named(small, monkeypatch, key, value, reason):
    monkeypatch.setattr(small.model.get_decoder().config, key, value)
    assert can_serve(small) == f"gemma2: {reason}"


def test_a_wrong_window_is_seen_however_long_it_is(small, monkeypatch):
    config = small.model.get_decoder().config
    monkeypatch.setattr(config, "sliding_window", 400)
    assert can_serve(small) is None
    assert config.sliding_window == 400
    monkeypatch.setattr(decoder, "windows", lambda config: {"full_attention": None, "sliding_attention": None})
    assert "its logits from slots differ by" in can_serve(small)


# --- the commands with rollout.engine=own ----------------------------------------------------------------------------

OWN = ["rollout.engine=own", "rollout.max_new_tokens=40"]


def test_two_turns_of_the_engine_are_those_of_generate(tiny):
    """One question several times in a row is encoded once; the trajectories are the same."""
    recipe = load_recipe("tiny-cpu", OWN)
    examples = load_dataset(str(SHIPPED), recipe.data).splits["train"][:12]
    repeated = [example for example in examples for _ in range(2)]
    by_engine, by_generate = (
        two_turn_rollout(generator(tiny, rollout, 0.0, batch_size=7), tiny.chat, repeated)
        for rollout in (recipe.rollout, recipe.rollout.model_copy(update={"engine": "generate"}))
    )
    assert by_engine == by_generate
    assert len({t.example.id for t in by_engine}) == 12


def test_samples_of_the_engine_follow_torchs_seed_and_not_the_slots(tiny):
    recipe = load_recipe("tiny-cpu", [*OWN, "rollout.temperature=1.0"])
    examples = load_dataset(str(SHIPPED), recipe.data).splits["train"][:6]
    found = []
    for seed, slots in ((1, 2), (1, 64), (2, 64)):
        torch.manual_seed(seed)
        made = two_turn_rollout(generator(tiny, recipe.rollout, 1.0, batch_size=slots), tiny.chat, examples)
        found.append([(t.first.ids, t.second.ids) for t in made])
    assert found[0] == found[1] != found[2]


def test_a_run_with_the_engine_resumes_to_the_same_bytes(tmp_path):
    quick = [*("--set", "stage1.questions_per_step=2", "--set", "stage1.samples_per_question=4")]
    quick += [*("--set", "stage1.save_steps=1", "--set", "eval.max_questions=4", "--set", "rollout.engine=own")]
    given = ["stage1", "--data", SHIPPED, "--recipe", "tiny-cpu", *quick]
    for steps, folder in ((2, "whole"), (1, "parts"), (2, "parts")):
        words = [*given, "--set", f"stage1.max_steps={steps}", "--out", folder, "--resume"]
        done = scorefast(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    adapters = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert adapters[0] == adapters[1]


def test_a_model_that_the_engine_cannot_serve_is_refused_by_its_key(tmp_path):
    tokenizer = tokenizer_of(LLAMA3)
    config = transformers.MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=len(tokenizer))
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"rollout\.engine: own cannot serve this model \(mamba: .*take generate"):
        load_policy(load_recipe("tiny-cpu", [f"model.name={tmp_path}", "rollout.engine=own"]))
