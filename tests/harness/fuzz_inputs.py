"""Inputs of about the right shape for the fuzzer's targets, as hypothesis strategies of bytes."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from hypothesis import strategies as st

from scorefast.recipe import known_keys
from tests.harness.fuzz_targets import FILES, KINDS

TEXT = st.text(max_size=40) | st.text("\0\x1b\x7f\u202e\ufeff\u200b١Ⅷ½²①万가\u0301\x85\u2028\t\r\n", max_size=20)
HALVES = TEXT | st.text("\ud800\udc80a", max_size=3)
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, -(2**63), 1e308, 0x7FF])
TREE = st.recursive(
    st.none() | st.booleans() | NUMBERS | HALVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
YAML = "&a |*a|<<: |- |? |: |!!int |{|}|[|]|>-\n|'|\"|#|---\n|%YAML 1.1\n|...\n|0x_|0b_|1:1:1|2026-99-99|.inf|.nan|~|="
YAML += "|\t|\n|  "
LIKELY: list[Any] = [
    1,
    2,
    16,
    0.5,
    1e-5,
    True,
    False,
    None,
    "auto",
    "none",
    "constant",
    "tiny-gemma2",
    "numeric",
    {},
    [],
    "all-linear",
]
SAID = "The answer is |#### |\\boxed{|}|A: |Answer: |<answer>|Wait, no |not | or |정답은 |1,234.50|$18|3/4|75 %|1.2e3"
SAID += (
    "|=|^|(|)|\\frac{3}{4}|1½|3만|9 + 9|10^10^10|x^2|\\sqrt{2}|A|B)|①|\n|. |?|-|~|/|0|1e999999999|12345678901234567890"
)
SAID += "|Is it "
COLUMNS = ["question", "correct_answer", "original_answer", "answer", "problem", "solution", "messages", "grader"]
FIELDS = ["id", "question", "original_answer", "correct_answer", "grader", "original_answer_by", "extra", "other"]
CELLS = ['"', '""', ",", ";", "\t", "\r\n", "\n", "\r", "#### 5", "\\boxed{1}", "<<1+1=2>>", "numeric", "sep=;"]
LORA = """r lora_alpha target_modules peft_type task_type rank_pattern alpha_pattern lora_dropout bias revision
modules_to_save init_lora_weights layers_to_transform layers_pattern exclude_modules use_dora use_rslora loftq_config
auto_mapping base_model_name_or_path fan_in_fan_out trainable_token_indices target_parameters
inference_mode megatron_config"""
CONFIG = """vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim layer_types
intermediate_size attn_logit_softcapping final_logit_softcapping sliding_window query_pre_attn_scalar hidden_activation
rope_theta rope_parameters rope_scaling tie_word_embeddings eos_token_id pad_token_id bos_token_id model_type dtype
max_position_embeddings quantization_config auto_map attention_dropout rms_norm_eps use_cache architectures
transformers_version chat_template tokenizer_class added_tokens_decoder extra_special_tokens model_max_length
padding_side eos_token pad_token bos_token additional_special_tokens model added_tokens pre_tokenizer decoder
post_processor normalizer truncation padding temperature top_k max_new_tokens do_sample"""
TOKENIZER = """model added_tokens pre_tokenizer decoder post_processor normalizer truncation padding version
added_tokens_decoder extra_special_tokens eos_token pad_token bos_token chat_template model_max_length"""
GENERATION = """min_new_tokens min_length max_length max_time num_beams num_return_sequences no_repeat_ngram_size
repetition_penalty typical_p epsilon_cutoff eta_cutoff suppress_tokens begin_suppress_tokens bad_words_ids
forced_bos_token_id forced_eos_token_id sequence_bias guidance_scale watermarking_config stop_strings penalty_alpha
cache_implementation cache_config prompt_lookup_num_tokens assistant_early_exit eos_token_id pad_token_id use_cache"""
STATE = """global_step log_history best_metric best_model_checkpoint epoch max_steps num_train_epochs train_batch_size
save_steps logging_steps eval_steps stateful_callbacks total_flos trial_params is_hyper_param_search
num_input_tokens_seen is_local_process_zero is_world_process_zero best_global_step stage data data_sha256
from from_sha256 base_sha256 versions backend loss files scorefast step"""
GROUPS = ["model", "data", "reward", "rollout", "loss", "stage1", "stage2", "eval"]
ASKED = ["What is 1 + 2?", "<end_of_turn>", "<eos>", "x" * 60_000, "7 " * 20_000, "\r", "\x0c", "\x1c", "\u2028"]


def inputs(target: str) -> st.SearchStrategy[bytes]:
    return {
        "recipe": _recipes,
        "set": _overrides,
        "source": _sources,
        "parquet": lambda: _parquet(st.sampled_from(COLUMNS) | TEXT, []),
        "prepared": lambda: _parquet(st.sampled_from(FIELDS), ["id", "question", "correct_answer"]),
        "answer": lambda: st.tuples(st.sampled_from([b"\0", b"\1", b"\2", b"\3"]), _replies()).map(b"".join),
        "math": _replies,
        "checkpoint": lambda: _damages("checkpoint", LORA.split()),
        "model": lambda: _damages("model", CONFIG.split()),
        "tokenizer": lambda: _damages("tokenizer", TOKENIZER.split()),
        "generation": lambda: _damages("generation", GENERATION.split()),
        "run": lambda: _damages("run", STATE.split()),
        "chat": lambda: spoiled(encoded(st.lists(TEXT | st.sampled_from(ASKED), max_size=3).map("\n".join))),
    }[target]()


def encoded(strategy: st.SearchStrategy[str]) -> st.SearchStrategy[bytes]:
    return strategy.map(lambda text: text.encode("utf-8", "surrogatepass"))


def spoiled(strategy: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """The bytes, some of them cut off, doubled or with bits flipped."""
    places = st.lists(st.tuples(st.sampled_from("cdf"), st.integers(0, 2**20)), max_size=3)
    return st.tuples(strategy, st.just([]) | places).map(lambda both: _spoil(*both))


def _spoil(data: bytes, places: list[tuple[str, int]]) -> bytes:
    for what, place in places:
        at = place % (len(data) + 1)
        if what == "c":
            data = data[:at]
        elif what == "d":
            data = data[:at] + data[at // 2 :]
        elif at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << place % 8]) + data[at + 1 :]
    return data


def dumped(tree: dict[str, Any]) -> str:
    return yaml.safe_dump(tree, sort_keys=False)


def _scalars() -> st.SearchStrategy[str]:
    return st.sampled_from(YAML.split("|")) | TEXT | NUMBERS.map(repr) | TREE.map(json.dumps)


def _recipes() -> st.SearchStrategy[bytes]:
    keys = st.sampled_from([key.split(".")[-1] for key in known_keys()])
    line = st.tuples(st.sampled_from(["", "  ", "    "]), keys | TEXT, _scalars())
    lines = st.lists(line.map(lambda parts: f"{parts[0]}{parts[1]}: {parts[2]}\n"), max_size=12).map("".join)
    loose = st.lists(_scalars(), max_size=20).map("".join)
    groups = {
        name: [k.split(".")[1] for k in known_keys() if k.count(".") == 1 and k.startswith(name)] for name in GROUPS
    }
    likely = st.fixed_dictionaries(
        {}, optional={n: st.dictionaries(st.sampled_from(keys), st.sampled_from(LIKELY)) for n, keys in groups.items()}
    )
    return encoded(likely.map(json.dumps)) | spoiled(encoded(likely.map(dumped) | lines | loose | TREE.map(json.dumps)))


def _overrides() -> st.SearchStrategy[bytes]:
    keys = st.sampled_from(known_keys())
    likely = st.tuples(keys, st.sampled_from(LIKELY).map(json.dumps)).map("=".join)
    pair = likely | st.tuples(keys | TEXT, st.lists(_scalars(), max_size=5).map("".join)).map("=".join)
    return encoded(likely) | encoded(st.lists(pair | TEXT, min_size=1, max_size=3).map("\0".join))


def _sources() -> st.SearchStrategy[bytes]:
    cell = TEXT | NUMBERS.map(repr) | st.sampled_from(CELLS)
    heads = st.permutations(COLUMNS[:3]) | st.just(["question", "answer"]) | st.just(["problem", "solution"])
    table = st.tuples(heads, st.lists(st.lists(cell, min_size=2, max_size=4), max_size=6), st.sampled_from(",\t;"))
    tables = table.map(lambda parts: _table([parts[0], *parts[1]], parts[2]))
    wholes = st.lists(st.lists(TEXT.map(str.strip).filter(bool), min_size=3, max_size=3), min_size=1, max_size=6)
    tables |= wholes.map(lambda rows: _table([COLUMNS[:3], *rows], ","))
    message = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]) | TREE, "content": TEXT | TREE})
    values = TEXT | TREE | st.sampled_from(CELLS) | st.lists(message, max_size=5)
    record = st.dictionaries(st.sampled_from(COLUMNS) | TEXT, values, max_size=6)
    records = st.lists(record | st.fixed_dictionaries({"messages": st.lists(message, max_size=5)}), max_size=6)
    lines = records.map(lambda many: "\n".join(map(json.dumps, many)))
    loose = st.lists(cell | st.sampled_from(COLUMNS) | st.just("\n"), max_size=30).map("".join)
    plain = st.tuples(st.integers(0, 255).map(lambda kind: bytes([kind])), encoded(tables | lines)).map(b"".join)
    narrow = encoded(tables | loose | lines | records.map(json.dumps) | TREE.map(json.dumps))
    codecs = st.sampled_from(["utf-16", "utf-32", "cp949", "utf-16-le", "utf-16-be", "cp1252", "shift-jis"])
    wide = st.tuples(tables | lines, codecs).map(lambda parts: parts[0].encode(parts[1], "replace"))
    packed = spoiled(encoded(tables | lines).map(lambda content: bytes(gzip.compress(content))))
    plain |= packed.map(lambda content: bytes([2 * KINDS.index(".jsonl.gz")]) + content)  # as it stands
    return plain | st.tuples(st.integers(0, 255).map(lambda kind: bytes([kind])), spoiled(narrow | wide)).map(b"".join)


def _parquet(names: st.SearchStrategy[str], needed: list[str]) -> st.SearchStrategy[bytes]:
    """Files of a few columns, each of one type, some with a bit changed or cut off."""
    texts = st.lists(TEXT | st.none() | st.sampled_from(["numeric", "{}", '{"a": [1]}']), min_size=3, max_size=3)
    same = st.text(min_size=1, max_size=9).map(lambda text: [text, "b" + text, "c" + text])
    values = texts | same | st.lists(NUMBERS, min_size=3, max_size=3) | st.lists(TREE, min_size=3, max_size=3)
    more: st.SearchStrategy[dict[str, Any]] = st.just({}) | st.dictionaries(names, values, max_size=4)
    sound = st.fixed_dictionaries(dict.fromkeys(needed or ("question", "correct_answer"), same))
    tables = st.tuples(sound, more).map(lambda both: _parquet_bytes(both[0] | both[1]))
    return tables | spoiled(tables)


def _parquet_bytes(columns: dict[str, list]) -> bytes:
    arrays = {}
    for name, values in columns.items():
        with contextlib.suppress(pa.ArrowException, ValueError, TypeError, OverflowError):  # of several types
            arrays[name] = pa.array(values)
    out = io.BytesIO()
    try:
        pq.write_table(pa.table(arrays), out, compression="zstd")
    except (pa.ArrowException, ValueError):  # an object without keys
        return b"PAR1"
    return out.getvalue()


def _table(rows: list, delimiter: str) -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows(rows)
    return out.getvalue()


def _replies() -> st.SearchStrategy[bytes]:
    said = st.lists(st.sampled_from(SAID.split("|")) | TEXT | NUMBERS.map(repr), max_size=15).map("".join)
    long = st.tuples(said, st.integers(1, 3000)).map(lambda parts: (parts[0] * parts[1])[:60_000])
    rambling = st.integers(0, 2**32).map(_rambling)
    replies = st.tuples(said | long | rambling, said, said | long).map("\x1f".join)
    return replies.map(lambda text: text.encode("utf-8", "replace"))


def _rambling(seed: int) -> str:
    draw = random.Random(seed)
    return "".join(draw.choices(draw.sample(SAID.split("|"), draw.randint(1, 8)), k=draw.randint(1, 8000)))


def _damages(target: str, keys: list[str]) -> st.SearchStrategy[bytes]:
    """One or two damages that the targets can do to a file, and most to what is read of it: the keys of its JSON."""
    files = st.sampled_from(FILES[target])
    objects = st.sampled_from([name for name in FILES[target] if name.endswith(".json")])
    place = st.integers(0, 8000) | st.integers(0, 2**24)
    step = st.tuples(files, st.sampled_from(["cut", "flip", "rename"]), place)
    step |= st.tuples(objects, st.just("set"), st.sampled_from(keys) | TEXT, TREE | st.sampled_from(LIKELY))
    step |= st.tuples(files, st.just("is"), TEXT | TREE.map(json.dumps))
    return encoded(st.lists(step, min_size=1, max_size=2).map(json.dumps))
