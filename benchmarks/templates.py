"""Which chat templates are served: renderings of our own, in the manner of 23 families, and what becomes of each.

    python -m benchmarks templates     # benchmarks/results/templates.md

Every family has a small tokenizer of its kind. In every row that is not refused, turn 1's ids are those of
`apply_chat_template([question], add_generation_prompt=True)`, for questions with digits, leading spaces, Korean and
emoji. `served`: prompt, reply and correction turn together have the ids of the whole conversation's rendering. `by
rule`: the template rewrites the history, and `prompt.history` decides what turn 2 sees of turn 1. `refused`: the line
that the user reads before a model loads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from benchmarks.common import RESULTS, about, argument_parser, markdown_table, write_page
from scorefast.model.chat_format import ChatFormat
from scorefast.schema import CORRECTION

TEXTS = [
    "What is 12 + 34? The answer is 46.\nuser assistant system think User Assistant model final",
    CORRECTION,
    "대한민국의 수도는? 서울입니다.",
]
QUESTIONS = ["What is 12 + 34?", "  How many apples? ", "7", "대한민국의 수도는?", "🙂 왜 1 + 1?", "a\n\n- b\tc <b>"]
REPLIES = ["The answer is 46", "46", "서울입니다.", "🙂", "1. a\n\n2. b"]


def byte_level(markers: list[str], **names: str) -> PreTrainedTokenizerFast:
    """As GPT-2's, Llama-3's and Qwen's: words with the space before them, bytes for what is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _with_words(tokenizer, pre_tokenizers.ByteLevel.alphabet(), markers, names)


def metaspace(markers: list[str], *, scheme: str = "first", **names: str) -> PreTrainedTokenizerFast:
    """As Llama-2's and Mistral's: `\u2581` for a space, and one before the text (`first`) or every part (`always`)."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    if scheme == "legacy":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    alphabet = ["\u2581", *map(chr, range(33, 127))]
    return _with_words(tokenizer, alphabet, markers, {"unk_token": "<unk>", **names})


def _with_words(tokenizer: Any, alphabet: list[str], markers: list[str], names: dict[str, str]) -> Any:
    """Single characters and bytes are enough of a vocabulary: nothing here depends on its words."""
    metaspaced = "\u2581" in alphabet
    known = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))] if metaspaced else []
    trainer = trainers.BpeTrainer(
        vocab_size=700 if metaspaced else 400, initial_alphabet=alphabet, special_tokens=known, show_progress=False
    )
    texts = [word for text in TEXTS for word in text.split()] if metaspaced else TEXTS
    tokenizer.train_from_iterator(texts, trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = []  # bytes are no special tokens: they stand in for characters that are unknown
    rebuilt = Tokenizer.from_str(json.dumps(content))
    rebuilt.add_special_tokens([AddedToken(marker, special=True, normalized=False) for marker in markers])
    return PreTrainedTokenizerFast(tokenizer_object=rebuilt, clean_up_tokenization_spaces=False, **names)


def says(form: str, content: str = "m.content") -> str:
    """Jinja for `form`, with `content` in place of §."""
    return "{{ '" + form.replace("§", "' + " + content + " + '") + "' }}"


def per_message(user: str, assistant: str, generation: str, *, system: str = "", before: str = "") -> str:
    """A template: `user` and `system` are forms of a message, § being its content; `assistant` is Jinja already."""

    refuse = "{{ raise_exception('System role not supported') }}"
    roles = (
        "{% if m.role == 'user' %}" + says(user) + "{% elif m.role == 'system' %}"
        f"{says(system) if system else refuse}" + "{% else %}" + assistant + "{% endif %}"
    )
    end = "{% if add_generation_prompt %}{{ '" + generation + "' }}{% endif %}" if generation else ""
    return before + "{% for m in messages %}" + roles + "{% endfor %}" + end


SPOKEN = "(m.content.split('</think>')[-1] | trim)"
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ML_USER, ML_HEAD = "<|im_start|>user\\n§<|im_end|>\\n", "<|im_start|>assistant\\n"
ML_SYSTEM = "<|im_start|>system\\n§<|im_end|>\\n"
NAMES = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
THINK = [*CHATML, "<think>", "</think>"]


def chatml(generation: str = ML_HEAD, content: str = "m.content", before: str = "") -> str:
    said = says(ML_HEAD + "§<|im_end|>\\n", content)
    return per_message(ML_USER, said, generation, system=ML_SYSTEM, before=before)


@dataclass(frozen=True)
class Family:
    template: str
    tokenizer: Callable[..., Any]  # makes the tokenizer
    markers: list[str]
    names: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def make(self) -> Any:
        tokenizer = self.tokenizer(self.markers, **self.names)
        tokenizer.chat_template = self.template
        return tokenizer


def gemma(system: str = "") -> str:
    turn = "<start_of_turn>{}\\n§<end_of_turn>\\n"
    return per_message(
        turn.format("user"),
        says(turn.format("model"), "(m.content | trim)"),
        "<start_of_turn>model\\n",
        system=system,
        before="{{ bos_token }}",
    ).replace("+ m.content +", "+ (m.content | trim) +")


GEMMA = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
GEMMA_MARKERS = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
SP = {"bos_token": "<s>", "eos_token": "</s>"}
SP_MARKERS = ["<s>", "</s>"]
L3 = "<|start_header_id|>{}<|end_header_id|>\\n\\n"
QWEN3_HEAD = "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"


def legacy(markers: list[str], **names: str) -> Any:
    return metaspace(markers, scheme="legacy", **names)


def always(markers: list[str], **names: str) -> Any:
    return metaspace(markers, scheme="always", **names)


def qwen3() -> str:
    """The generation prompt adds an empty thought where thinking is off; the history drops thoughts."""
    plain = chatml(content=SPOKEN)
    return plain.replace(f"{{{{ '{ML_HEAD}' }}}}{{% endif %}}", f"{{{{ '{ML_HEAD}' }}}}{QWEN3_HEAD}{{% endif %}}")


FAMILIES: dict[str, Family] = {
    "Gemma-2": Family(gemma(), byte_level, GEMMA_MARKERS, GEMMA),
    "Gemma-3": Family(gemma(system="<start_of_turn>user\\n§\\n\\n"), byte_level, GEMMA_MARKERS, GEMMA),
    "Llama-2": Family(
        per_message("<s>[INST] § [/INST]", says(" § </s>"), "", system="<<SYS>>\\n§\\n<</SYS>>\\n\\n"),
        legacy,
        SP_MARKERS,
        SP,
    ),
    "Llama-3": Family(
        per_message(
            L3.format("user") + "§<|eot_id|>",
            says(L3.format("assistant") + "§<|eot_id|>"),
            L3.format("assistant"),
            system=L3.format("system") + "§<|eot_id|>",
            before="{{ bos_token }}",
        ),
        byte_level,
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"],
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
    ),
    "Qwen2.5": Family(chatml(before="{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}"), byte_level, CHATML, NAMES),
    "Qwen3, thinking": Family(qwen3(), byte_level, THINK, NAMES),
    "Qwen3, `enable_thinking: false`": Family(qwen3(), byte_level, THINK, NAMES, {"enable_thinking": False}),
    "Qwen3-Thinking (opens the thought)": Family(chatml(ML_HEAD + "<think>\\n", SPOKEN), byte_level, THINK, NAMES),
    "R1 distills": Family(
        per_message(
            "<|User|>§",
            says("<|Assistant|>§<|end_of_sentence|>", "m.content.split('</think>')[-1]"),
            "<|Assistant|><think>\\n",
            system="§",
            before="{{ bos_token }}",
        ),
        byte_level,
        ["<|begin_of_sentence|>", "<|end_of_sentence|>", "<|User|>", "<|Assistant|>", "<think>", "</think>"],
        {"bos_token": "<|begin_of_sentence|>", "eos_token": "<|end_of_sentence|>"},
    ),
    "Mistral-v0.1": Family(
        per_message("[INST] § [/INST]", says("§</s>"), "", before="{{ bos_token }}"), legacy, SP_MARKERS, SP
    ),
    "Mistral-v0.3": Family(
        per_message("[INST] §[/INST]", says(" §</s>"), "", before="{{ bos_token }}"),
        always,
        [*SP_MARKERS, "[INST]", "[/INST]"],
        SP,
    ),
    "SmolLM2": Family(chatml(), byte_level, CHATML, NAMES),
    "SmolLM3, thinking": Family(chatml(ML_HEAD, "m.content"), byte_level, THINK, NAMES),
    "SmolLM3, `/no_think`": Family(chatml(ML_HEAD + "<think>\\n\\n</think>\\n", SPOKEN), byte_level, THINK, NAMES),
    "Phi-3": Family(
        per_message("<|user|>\\n§<|end|>\\n", says("<|assistant|>\\n§<|end|>\\n"), "<|assistant|>\\n"),
        legacy,
        ["<s>", "</s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"],
        {"bos_token": "<s>", "eos_token": "<|endoftext|>"},
    ),
    "Phi-4": Family(
        per_message(
            "<|im_start|>user<|im_sep|>§<|im_end|>",
            says("<|im_start|>assistant<|im_sep|>§<|im_end|>"),
            "<|im_start|>assistant<|im_sep|>",
        ),
        byte_level,
        [*CHATML, "<|im_sep|>"],
        NAMES,
    ),
    "Zephyr": Family(
        per_message(
            "<|user|>\\n§</s>\\n", says("<|assistant|>\\n§</s>\\n"), "<|assistant|>\\n", system="<|system|>\\n§</s>\\n"
        ),
        legacy,
        SP_MARKERS,
        SP,
    ),
    "Vicuna": Family(
        per_message("USER: § ", says("ASSISTANT: §</s>"), "ASSISTANT:", system="§ ", before="{{ bos_token }}"),
        metaspace,
        SP_MARKERS,
        SP,
    ),
    "Vicuna, space at the end": Family(
        per_message("USER: § ", says("ASSISTANT: §</s>"), "ASSISTANT: ", before="{{ bos_token }}"),
        metaspace,
        SP_MARKERS,
        SP,
    ),
    "OpenChat": Family(
        per_message(
            "GPT4 Correct User: §<|end_of_turn|>",
            says("GPT4 Correct Assistant: §<|end_of_turn|>"),
            "GPT4 Correct Assistant:",
            before="{{ bos_token }}",
        ),
        legacy,
        [*SP_MARKERS, "<|end_of_turn|>"],
        SP,
    ),
    "gpt-oss": Family(
        per_message(
            "<|start|>user<|message|>§<|end|>",
            says("<|start|>assistant<|channel|>final<|message|>§<|end|>"),
            "<|start|>assistant",
        ),
        byte_level,
        ["<|endoftext|>", "<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>"],
        {"eos_token": "<|return|>", "pad_token": "<|endoftext|>"},
    ),
    "ChatML without a generation prompt": Family(chatml(generation=""), byte_level, CHATML, NAMES),
    "Alpaca (no closing token)": Family(
        per_message("### Instruction:\\n§\\n\\n", says("### Response:\\n§\\n\\n"), "### Response:\\n"),
        byte_level,
        ["<|endoftext|>"],
        {"eos_token": "<|endoftext|>"},
    ),
}


def verdict(family: Family) -> str:
    """`served`, `by rule: ...`, or why not. Raises AssertionError where ids are others than the template's."""
    tokenizer = family.make()
    try:
        chat = ChatFormat(tokenizer, options=family.options)
    except ValueError as error:
        return "refused: " + str(error).partition(": ")[2]

    def templated(*contents: str) -> list[int]:
        roles = ("user", "assistant", "user")
        turns = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
        ids: list[int] = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_dict=False, **family.options
        )
        return ids

    retelling = ChatFormat(tokenizer, options=family.options, history="as_template")
    for question in QUESTIONS:
        assert chat.first_turn(question) == templated(question), question
        for said in REPLIES:
            reply, whole = chat.reply(said), templated(question, said, CORRECTION)
            told = f"{chat.tags[0]}\n{chat.decode(reply)}" if chat.tags and chat.opens_thought else said
            retold = templated(question, told, CORRECTION)
            assert retelling.prompt(question, reply) == retold, (question, said)
            assert chat.rewrites_history or chat.prompt(question, reply) == whole, (question, said)
    if not chat.rewrites_history:
        return "served"
    return "by rule: " + ("its replies begin inside a thought" if chat.opens_thought else "it rewrites thoughts")


def table() -> str:
    """The whole page."""
    rows = markdown_table(["in the manner of", ""], [[name, verdict(family)] for name, family in FAMILIES.items()])
    return "\n".join(["# Chat templates", "", about(__doc__), "", *rows, ""])


def main(argv: Sequence[str]) -> None:
    """Parse the flags and write the page."""
    parser = argument_parser("benchmarks templates", __doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of templates.md")
    given = parser.parse_args(argv)
    write_page(given.out / "templates.md", table().splitlines())
    print(given.out / "templates.md")
