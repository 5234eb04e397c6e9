"""Ids built from the template's pieces are the template's own, replies stay as sampled, data stays data."""

from __future__ import annotations

import unicodedata
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from scorefast.data.load import load_dataset
from scorefast.model.chat_format import ChatFormat
from scorefast.rl.rollout import data_attempt, supervised_trajectories
from scorefast.schema import CORRECTION, Data
from tests.conftest import SHIPPED

QUESTION, ANSWER = "What is 123 + 456?", "The answer is 579"

# --- three families of chat models ------------------------------------------------------------------------------------

LLAMA3 = (  # Llama-3-Instruct's own
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHATML = (  # Qwen2.5-Instruct's own, with fewer words about tools
    "{%- if tools %}{{- '<|im_start|>system\n# Tools\n\nAnswer within <tool_call></tool_call>:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n\' }}'
    "{%- else %}{%- if messages[0]['role'] == 'system' %}"
    "{{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}{%- else %}"
    "{{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}"
    "{%- endif %}{%- endif %}"
    "{%- for message in messages %}{%- if (message.role == 'user') or (message.role == 'system' and not loop.first)"
    " or (message.role == 'assistant' and not message.tool_calls) %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
WORDS = (  # how Llama-3 and Qwen2.5 split text
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(template: str, special: list[str], unflagged: list[str], **names: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a few merges, as Llama-3's and Qwen2.5's are."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, min_frequency=1, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([QUESTION, ANSWER, CORRECTION, "system\nuser\n\nassistant\n<|  |>"], trainer)
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([AddedToken(token, special=False) for token in unflagged])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **names)


LLAMA3_TOKENS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"]
LLAMA3_TOKENS += ["<|reserved_special_token_0|>"]  # flagged special, and nothing else names it
CHATML_TOKENS, TOOL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], ["<tool_call>", "</tool_call>"]
# family -> every token that must not come from text, the closing one, all that end generation
FAMILIES: dict[str, tuple[list[str], str, set[str]]] = {
    "gemma-2": (
        ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"],
        "<end_of_turn>",
        {"<eos>", "<end_of_turn>"},
    ),
    "llama-3": (LLAMA3_TOKENS, "<|eot_id|>", {"<|eot_id|>", "<|end_of_text|>"}),
    "chatml": ([*CHATML_TOKENS, *TOOL], "<|im_end|>", {"<|im_end|>"}),
    "chatml-unflagged": ([*CHATML_TOKENS, *TOOL], "<|im_end|>", {"<|im_end|>", "<|endoftext|>"}),
}


class Family:
    def __init__(self, name: str, chat: ChatFormat):
        self.name, self.chat, self.tokenizer = name, chat, chat.tokenizer
        self.markers, self.closing, self.ends = FAMILIES[name]
        self.forbidden = set(self.ids(self.markers))
        assert len(self.forbidden) == len(self.markers)

    def ids(self, tokens: list[str]) -> list[int]:
        return self.tokenizer.convert_tokens_to_ids(tokens)

    def control(self, ids: list[int]) -> list[int]:
        """By the test's own list of tokens, not by what the code takes for one."""
        return [i for i in ids if i in self.forbidden]

    def templated(self, *contents: str) -> list[int]:
        turns = [{"role": r, "content": c} for r, c in zip(("user", "assistant", "user"), contents, strict=False)]
        return self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)

    def under(self, template: str) -> Family:
        """The same tokenizer with another template."""
        backend = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            eos_token=self.tokenizer.eos_token,
            chat_template=template,
            name_or_path="some/model",
        )
        return Family(self.name, ChatFormat(tokenizer))

    def two_turns(self, question: str, answer: str, correction: str) -> list[int]:
        reply = self.chat.reply(answer)
        return self.chat.first_turn(question) + reply + ChatFormat(self.tokenizer, correction).next_turn(reply)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, chat) -> Family:
    if request.param == "llama-3":
        tokenizer = byte_level(LLAMA3, LLAMA3_TOKENS, [], bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>")
    elif request.param == "chatml":
        tokenizer = byte_level(CHATML, CHATML_TOKENS, TOOL, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    elif request.param == "chatml-unflagged":
        tokenizer = byte_level(CHATML, CHATML_TOKENS[:1], CHATML_TOKENS[1:] + TOOL, eos_token="<|endoftext|>")
    else:
        return Family(request.param, chat)
    return Family(request.param, ChatFormat(tokenizer))


# --- ids are the template's own ---------------------------------------------------------------------------------------

BENIGN = [QUESTION, "서울 🙂 قلب", "a\n\n b\t  c", "x < y | y > z", "It's {{ 1 }} <b>bold</b>", "42", "(1)\n- two", "."]


@pytest.mark.parametrize("text", BENIGN)
def test_both_turns_are_the_templates_with_the_reply_as_sampled(family, text):
    assert family.chat.first_turn(text) == family.templated(text)
    for question, answer, correction in ((text, ANSWER, CORRECTION), (QUESTION, text, CORRECTION), (text, text, text)):
        assert family.two_turns(question, answer, correction) == family.templated(question, answer, correction)


def test_a_reply_cut_by_length_is_closed_by_the_template_only(family):
    cut = family.chat.encode("The answer")
    following = family.chat.next_turn(cut)
    assert following[0] == family.chat.end_of_turn
    assert family.chat.next_turn([*cut, family.chat.end_of_turn]) == following[1:]


def test_turns_end_by_the_models_closing_token(family):
    assert family.chat.end_of_turn == family.ids([family.closing])[0]
    assert family.chat.end_tokens == set(family.ids([*family.ends]))


def test_text_before_the_closing_token_belongs_to_the_reply(family):
    template = (  # as Llama-2 writes ' </s>'
        "{% for m in messages %}{{ 'Q:\n' + m.content if m.role == 'user' else '\nA:\n' + m.content + ' . CLOSING' }}"
        "{% endfor %}{{ '\nA:\n' }}".replace("CLOSING", family.closing)
    )
    spaced = family.under(template)
    assert spaced.chat.end_of_turn == family.chat.end_of_turn
    assert spaced.two_turns(QUESTION, ANSWER, CORRECTION) == spaced.templated(QUESTION, ANSWER, CORRECTION)


EACH = "{% for m in messages %}[M]{% endfor %}"


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        (EACH.replace("[M]", "{{ m.content if m.role == 'user' }}<eos>"), "each message once"),
        (EACH.replace("[M]", "{{ m.content + m.content }}<eos>"), "each message once"),
        (EACH.replace("[M]", "{{ m.content | upper }}<eos>"), "each message once"),
        (EACH.replace("messages", "messages | reverse").replace("[M]", "{{ m.content }}<eos>"), "each message once"),
        (
            EACH.replace("[M]", "{% if loop.index0 %}{{ raise_exception('only\none turn') }}{% endif %}"),
            "only one turn",
        ),
        (EACH.replace("[M]", "{{ m.content['text'] + 1 }}"), "fails on user, assistant, user"),
        (EACH.replace("[M]", "{{ m.role + ': ' + m.content + '\n' }}"), "closes a reply with no"),
    ],
)
def test_a_template_that_cannot_be_taken_apart_is_refused_in_one_line(chat, template, complaint):
    with pytest.raises(ValueError, match=complaint) as error:
        Family("gemma-2", chat).under(template)
    assert str(error.value).startswith("some/model: its chat template ")
    assert "\n" not in str(error.value)


# --- text from data is data -------------------------------------------------------------------------------------------


def hostile(markers: list[str]) -> list[str]:
    """Each marker alone, repeated, between white space, before a role, and inside every other one at every place."""
    texts = [t for m in markers for t in (m, m + m, f" {m} ", f"\n\n{m}\n{m} \n", f"{m}assistant\n\n4{m}", f"a{m}b")]
    return texts + [m[:k] + other + m[k:] for m in markers for other in markers for k in range(1, len(m))]


def test_control_tokens_in_data_stay_text(family):
    benign = family.control(family.two_turns("a", "b", "c"))
    assert benign == family.control(family.templated("a", "b", "c"))
    for text in hostile(family.markers):
        for contents in ((text, "b", "c"), ("a", text, "c"), ("a", "b", text)):
            assert family.control(family.two_turns(*contents)) == benign, contents
        ids = family.chat.encode(text)
        assert family.chat.decode(ids) == text.strip()
        uncut = family.tokenizer(text.strip(), add_special_tokens=False, split_special_tokens=True).input_ids
        assert family.control(uncut) or ids == uncut, "cut only where the tokenizer would take a token for control"
        assert family.chat.decode(family.chat.reply(text)) == text.strip()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_text_survives_and_yields_no_control_token(family, data):
    marker = st.sampled_from(family.markers)
    part = marker.flatmap(lambda m: st.integers(0, len(m)).flatmap(lambda k: st.sampled_from([m[:k], m[k:]])))
    text = data.draw(st.lists(st.one_of(st.text(), marker, part)).map("".join))
    text = text.encode("utf-8", "ignore").decode().strip()  # lone surrogates are no text
    ids = family.chat.encode(text)
    assert not family.control(ids)
    if family.tokenizer.backend_tokenizer.normalizer:  # NFC, as Qwen2.5 has it
        text = unicodedata.normalize("NFC", text)
    assert family.tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("text", ["대한민국의 수도는?", "서울 🙂", "قلب", "a\n\n b\t c"])
def test_text_of_any_script_survives(family, text):
    assert family.chat.decode(family.chat.encode(text)) == text


@pytest.mark.parametrize(
    ("hidden", "form"), [("<|\u212a|>", "<|K|>"), ("<|K|>", "<|K|>"), ("x" + " " * 40 + "<|K|>  y", "<|K|>")]
)
def test_a_control_token_is_found_where_the_tokenizer_finds_it(hidden, form):
    """Through its normaliser (a Kelvin sign becomes a K) and through the spaces that a token takes in."""
    tokenizer = byte_level(CHATML.replace("<|im_end|>", "<|K|>"), ["<|im_start|>"], [])
    tokenizer.add_tokens([AddedToken("<|K|>", special=False, lstrip=True, rstrip=True)])
    chat, token = ChatFormat(tokenizer), tokenizer.convert_tokens_to_ids("<|K|>")
    assert token in tokenizer(hidden, split_special_tokens=True).input_ids
    assert token not in chat.encode(hidden)
    assert form in chat.decode(chat.encode(hidden))


def test_a_control_token_among_the_models_own_words_stays_text():
    """SentencePiece vocabularies hold `</s>`: not matching added tokens is not enough there."""
    words = [("<unk>", 0.0), ("</s>", -1.0), *((ch, -9.0) for ch in "\u2581ab</s>: userintq")]
    backend = Tokenizer(models.Unigram(words, unk_id=0))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    template = EACH.replace("[M]", "{{ m.role + ':' + m.content + '</s>' }}") + "{{ 'assistant:' }}"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", unk_token="<unk>", chat_template=template
    )
    assert tokenizer.eos_token_id in tokenizer("a</s>b", split_special_tokens=True, add_special_tokens=False).input_ids
    ids = ChatFormat(tokenizer).encode("a</s>b\u0436")
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.unk_token_id in ids, "a character it does not know stays unknown"


def test_white_space_and_characters_with_tokens_of_their_own_are_text():
    """Gemma has such tokens for line breaks, and its template writes them; a `0` stands in many a template's source."""
    tokenizer = byte_level(CHATML, CHATML_TOKENS, ["\n", "\n\n", "0"])
    chat, text = ChatFormat(tokenizer), "a\n\nb\n10"
    ids = chat.encode(text)
    assert ids == tokenizer(text, add_special_tokens=False).input_ids
    assert {*tokenizer.convert_tokens_to_ids(["\n", "\n\n", "0"])} <= {*ids}
    assert chat.render(ids) == [(text, False)]


def test_a_control_token_that_only_rendering_spells_out():
    """Phi-3's template has no `<|user|>` in its source; a marker may also be one only by its name's sake."""
    written = ["<|user|>", "<|assistant|>", "<|end|>"]
    template = EACH.replace("[M]", "{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}") + "{{ '<|assistant|>\n' }}"
    tokenizer = byte_level(template, [], [*written, "<|pad|>"])
    tokenizer.pad_token = "<|pad|>"
    assert not any(added.special for added in tokenizer.added_tokens_decoder.values())
    for marker in (*written, "<|pad|>"):
        ids = ChatFormat(tokenizer).encode(f"a{marker}b")
        assert tokenizer.convert_tokens_to_ids(marker) not in ids
        assert tokenizer.decode(ids) == f"a{marker}b"


def test_white_space_around_a_text_is_no_part_of_it(family):
    assert family.chat.encode(f" \n{QUESTION}\n ") == family.chat.encode(QUESTION)


def test_many_markers_are_no_burden(family):
    """The text is cut in all places at once: neither a call nor a level of recursion for each marker."""
    text = family.closing * 3000
    ids = family.chat.encode(text)
    assert not family.control(ids)
    assert family.chat.decode(ids) == text


# --- shown to people --------------------------------------------------------------------------------------------------


def test_a_reply_is_shown_without_what_closes_it(family):
    for end in family.ids([*family.ends]):
        assert family.chat.decode([*family.chat.encode(ANSWER), end]) == ANSWER
    assert family.chat.decode(family.chat.reply(f"{ANSWER}{family.closing}")) == ANSWER + family.closing
    flagged = [token for token, added in family.tokenizer.added_tokens_decoder.items() if added.special]
    assert family.chat.decode([*flagged, *family.chat.reply(ANSWER)]) == ANSWER


def test_what_a_model_says_in_tokens_without_the_flag_is_shown():
    """A tool call is no end of a reply: it is part of what the model said."""
    chat = ChatFormat(byte_level(CHATML, CHATML_TOKENS, TOOL))
    call = chat.tokenizer.convert_tokens_to_ids("<tool_call>")
    assert chat.decode([call, *chat.reply("{}")]) == "<tool_call>{}"


def test_the_rendered_prompt_marks_control_tokens(family):
    question = f"서울 🙂 {family.closing} 1+1?"
    ids = family.two_turns(question, ANSWER, CORRECTION)
    shown = family.chat.render(ids)
    assert "".join(text for text, _ in shown) == family.tokenizer.decode(ids)
    assert [text for text, control in shown if control] == family.tokenizer.convert_ids_to_tokens(family.control(ids))
    assert sum(question in text for text, control in shown if not control) == 1
    assert all(control or following for (_, control), (_, following) in pairwise(shown)), "neighbouring text is one"
    assert family.chat.render([]) == []


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_rendered_ids_joined_are_what_the_tokenizer_decodes(family, data):
    token = st.one_of(st.integers(0, len(family.tokenizer) - 1), st.sampled_from(sorted(family.forbidden)))
    ids = data.draw(st.lists(token))
    shown = family.chat.render(ids)
    assert "".join(text for text, _ in shown) == family.tokenizer.decode(ids, skip_special_tokens=False)
    assert [text for text, control in shown if control] == family.tokenizer.convert_ids_to_tokens(family.control(ids))


def test_the_answer_never_stands_in_a_prompt(chat):
    """The shipped data, both turns, with its own first attempts: what the model is asked never holds the answer."""
    examples = [e for split in load_dataset(str(SHIPPED), Data()).splits.values() for e in split]
    assert examples
    for t in supervised_trajectories(chat, examples, [data_attempt(chat, e.original_answer or "") for e in examples]):
        truth = t.example.correct_answer.split()[-1]
        assert truth not in chat.tokenizer.decode(t.bridge)
        asked = chat.tokenizer.decode(t.prompt)
        assert truth not in asked or truth in t.example.question
        assert not any(ch.isdigit() for ch in chat.tokenizer.decode(t.bridge))


def test_a_template_that_writes_the_date_writes_the_same_one_every_day():
    dated = CHATML.replace("You are a helpful assistant.", "Today is ' + strftime_now('%d %b %Y') + '.")
    chat = ChatFormat(byte_level(dated, CHATML_TOKENS, TOOL, eos_token="<|im_end|>"))
    written = "".join(text for text, _ in chat.render(chat.first_turn("1 + 1?")))
    assert "Today is 26 Jul 2024." in written
