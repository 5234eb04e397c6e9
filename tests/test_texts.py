"""The grader of texts: which words are the same, what a reply commits to, agreement with labels, and that it cannot be
gamed by naming the answer beside another one."""

from __future__ import annotations

import json
import re
import time
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scorefast.grading.grade import grade
from scorefast.grading.statements import clauses, commitment, sentences
from scorefast.grading.texts import grade_text
from scorefast.grading.words import normal, words
from tests.conftest import REPOSITORY
from tests.text_attacks import attacks, type_of

GIVEN = REPOSITORY.parent / "shared" / "cases" / "text_pairs.jsonl"
HELD_OUT = REPOSITORY / "tests" / "text_pairs_held_out.jsonl"
UNTOUCHED = REPOSITORY / "tests" / "text_pairs_untouched.jsonl"
FILES = [
    HELD_OUT,
    pytest.param(
        GIVEN, marks=pytest.mark.skipif(not GIVEN.is_file(), reason=f"lacks {GIVEN.name}, not in the repository")
    ),
]


@cache
def pairs_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def graded(pair: dict[str, Any]):
    return grade_text(pair["answer"], pair["reference"], pair["question"])


# --- words -------------------------------------------------------------------------------------------------------

DATES = [
    "20 July 1969",
    "July 20th, 1969",
    "the 20th of July, 1969",
    "Jul. 20 1969",
    "1969-07-20",
    "1969.7.20",
    "1969년 7월 20일",
]
TIMES = ["2:40 p.m.", "2:40 PM", "14:40", "오후 2시 40분", "twenty to three p.m."]


@pytest.mark.parametrize(
    "same",
    [
        DATES,
        TIMES[:4],
        ["9 a.m.", "9 AM", "09:00 am", "9:00am", "오전 9시"],
        ["noon", "12 pm", "12:00 p.m.", "정오", "낮 12시"],
        ["half past seven", "7:30", "7시 반", "7시 30분"],
        ["24", "twenty-four", "twenty four", "two dozen", "24.0", "24"],
        ["1,250,000", "1250000", "1.25 million", "125만", "one million two hundred fifty thousand"],
        ["24 개", "스물네 개", "이십사 개", "24개"],
        ["3rd", "third"],
        ["km", "kilometers", "kilometre", "킬로미터"],
        ["100°C", "100 degrees Celsius", "100 ° C"],
        ["theatre", "theaters", "Theater"],
        ["colour", "Color"],
        ["e-mail", "email", "E-mails"],
        ["wrote", "written", "writes"],
        ["Brontë", "Bronte"],
        ["cities", "city"],
        ["U.S.", "US", "USA"],
        ["일어납니다", "일어난다", "일어나요", "일어났습니다"],
        ["만든다", "만듭니다", "만들다", "만드는", "만들었다", "만드신"],
        ["창제했다", "창제하였다", "창제합니다", "창제한"],
        ["중국", "중국입니다", "중국이며", "중국이에요", "중국에서는"],
    ],
    ids=lambda same: same[0],
)
def test_forms_of_one_word(same):
    found = [words(normal(text)) for text in same]
    assert [text for text, its in zip(same, found, strict=True) if not all(map(any_in(its), found[0]))] == []


def any_in(said):
    return lambda word: word in said


DIFFERENT = """
9:10, 21:10; 9:10 am, 9:10 pm; July 4, July 14; -5, 5; forty, fourteen; 3.5, 35; km, mile; C, C#; K2, K; US, us
WHO, who; principal, principle; puppy, guppy; Niger, Nigeria; 허준, 허균; 오이, 종이; 스물, 서른; 수성, 금성
에베레스트산, 백두산; 세종대왕, 정조대왕
"""


@pytest.mark.parametrize("pair", re.split("; |\n", DIFFERENT.strip()))
def test_words_that_differ(pair):
    one, other = (words(normal(text)) for text in pair.split(", "))
    assert not any(a == b for a in one for b in other)


def test_a_date_is_stated_by_one_with_all_its_parts():
    question = "When did it happen?"
    for said, reference, right in [
        *(("On 20 July 1969.", "1969", True), ("July 1969", "20 July 1969", False), ("20 July", "20 July 1969", False)),
        *(
            ("On July 20, 1969.", "July 20", True),
            ("1969", "July 1969", False),
            ("20 July 1969", "July 1969", True),
            ("4 July 1777", "4 July 1776", False),
        ),
    ]:
        assert grade_text(said, reference, question).correct is right, (said, reference)


# --- what a reply states -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "left"),
    [
        ("My previous answer was wrong. We live on Earth.", ["We live on Earth"]),
        ("I apologize for the mistake. Paris. I hope this helps!", ["Paris"]),
        ("The answer is Lyon. Wait, no, it is Paris.", ["no", "it is Paris"]),
        ("Is it Lyon? It is Paris.", ["It is Paris"]),
        ("Many say Lyon, but it is Paris.", ["it is Paris"]),
        ("I thought it was Lyon; it is Paris.", ["it is Paris"]),
        ("Although Lyon is old, the capital is Paris.", ["the capital is Paris"]),
        ("It is not Lyon but Paris.", ["It is Paris"]),
        ("It is Paris, not Lyon.", ["It is Paris"]),
        ("After Rome, Paris hosted it.", ["Paris hosted it, After Rome"]),
        ("1. **Solid** - keeps its shape\n2. **Gas** - fills", ["Solid, Gas"]),
        ("리옹이 아니라 파리입니다.", ["파리입니다"]),
        ("리옹도 크지만 파리입니다.", ["파리입니다"]),
        ("흔히 리옹이라고 합니다. 파리입니다.", ["파리입니다"]),
        ("제 이전 답변이 틀렸습니다. 파리입니다. 감사합니다!", ["파리입니다"]),
    ],
)
def test_what_a_reply_commits_to(reply, left):
    said = [c for s in sentences(normal(commitment(reply, judging=False))) for c in clauses(s)]
    assert [" ".join(text.split()).rstrip(".") for text in said] == left


def test_a_bracket_of_the_reference_is_an_answer_only_as_another_name():
    assert grade_text("WHO", "World Health Organization (WHO)", "Which body fights diseases?").correct
    assert grade_text("해인사", "해인사(海印寺)", "팔만대장경이 있는 절은?").correct
    for reply in ("a physicist", "1879"):
        for reference in ("Albert Einstein (physicist)", "Albert Einstein (1879)"):
            assert not grade_text(reply, reference, "Who found it?").correct


CAPITAL = "What is the capital of France?"


@pytest.mark.parametrize(
    ("reply", "right", "unsure", "reason"),
    [
        ("It is Paris.", True, False, 'states "paris"'),
        ("PARIS", True, False, "equals the reference"),
        ("Paris (Lutetia)", False, False, 'another candidate: "lutetia"'),
        ("It isn't Paris.", False, False, 'denied: "it isn\'t paris"'),
        ("Paris or Lyon", False, False, 'another candidate: "lyon"'),
        ("It is Lyon.", False, False, 'another candidate: "lyon"'),
        ("Paris lies above Lyon.", False, False, 'another candidate: "above lyon"'),
        ("Paris in France lies above the sea.", False, True, 'unknown words beside it: "above sea"'),
        ("The capital is Paris. Paris has the Eiffel Tower.", True, False, 'states "paris"'),
        ("It has many bridges.", False, True, 'does not state "paris"'),
        ("I don't know.", False, False, "refuses"),
        ("Is it Paris?", False, False, "states nothing"),
        (" \n", False, False, "empty"),
    ],
)
def test_verdicts_and_their_reasons(reply, right, unsure, reason):
    found = grade_text(reply, "Paris", CAPITAL)
    assert (found.correct, found.unsure, found.reason) == (right, unsure, reason)


def test_yes_and_no_by_what_is_said_of_the_question():
    question = "Can penguins fly?"
    said = {
        "No.": "no",
        "Penguins cannot fly.": "no",
        "Yes, they can.": "yes",
        "Penguins can fly.": "yes",
        "아니요": "no",
    }
    for reply, meant in said.items():
        for reference in ("yes", "no"):
            assert grade_text(reply, reference, question).correct is (reference == meant), (reply, reference)
    for reply in ("Yes and no.", "Yes or no", "No, there might be an error above.", "Some birds swim."):
        assert not grade_text(reply, "no", question).correct, reply


# --- agreement with labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES)
def test_agreement_with_labels(path):
    """The held-out pairs were written in four parts, each before the grader was run on it. At first contact 148 of 162
    agreed, then 109 of 121, 69 of 83 and 86 of 100, with no false right. The kinds were mended since. What is left is
    paraphrase, an alias in brackets, a country's long name. (The label of "At most 8 people." was mended: a bound is no
    answer.)"""
    found = [(pair, graded(pair)) for pair in pairs_of(path)]
    false_rights = [pair for pair, its in found if its.correct and not pair["label"]]
    agreed = sum(its.correct is pair["label"] for pair, its in found)
    assert false_rights == []
    assert agreed >= 0.98 * len(found)


@pytest.mark.parametrize(
    ("question", "reference", "reply"),
    [
        ("When did the war end?", "It ended in 1945.", "1945"),
        ("When did the Titanic sink?", "The Titanic sank in 1912.", "1912"),
        ("When did the Berlin Wall fall?", "The Berlin Wall fell in 1989.", "1989"),
        ("When did Princess Diana die?", "Princess Diana died in 1997.", "1997"),
        ("When did he win?", "He won in 1990", "1990"),
        ("Who invented the light bulb?", "Thomas Edison invented the light bulb.", "Edison"),
        ("Who discovered penicillin?", "Penicillin was discovered by Alexander Fleming.", "Alexander Fleming"),
        ("When did the USA become independent?", "The USA became independent in 1776.", "1776"),
        ("When does school begin?", "School begins at 8.", "at 8"),
        ("When did the Wright brothers first fly?", "The Wright brothers first flew in 1903.", "1903"),
        ("Who built the Eiffel Tower?", "The Eiffel Tower was built by Gustave Eiffel.", "Gustave Eiffel"),
        ("What do bees make?", "Bees make honey.", "honey"),
        ("What do cows eat?", "Cows eat grass.", "grass"),
        ("Where does the sun rise?", "The sun rises in the east.", "in the east"),
        ("When did Columbus reach America?", "Columbus reached America in 1492.", "1492"),
        ("Which planet is called the red planet?", "Mars is called the red planet.", "Mars"),
        (
            "Who was the first person to walk on the moon?",
            "The first man on the moon was Neil Armstrong.",
            "Neil Armstrong",
        ),
        ("한글은 언제 만들어졌나요?", "한글은 1443년에 만들어졌습니다.", "1443년"),
        ("거북선은 누가 만들었나요?", "거북선을 만든 사람은 이순신입니다.", "이순신"),
        ("3·1 운동은 언제 일어났나요?", "3·1 운동은 1919년에 일어났다.", "1919년"),
        ("전구는 누가 발명했나요?", "전구를 발명한 사람은 에디슨이다.", "에디슨"),
        ("물은 몇 도에서 끓나요?", "물은 100도에서 끓습니다.", "100도"),
        ("해는 어느 쪽에서 뜨나요?", "해는 동쪽에서 뜹니다.", "동쪽"),
        ("벌은 무엇을 만드나요?", "벌은 꿀을 만듭니다.", "꿀"),
    ],
)
def test_a_verb_of_the_question_is_no_part_of_the_key(question, reference, reply):
    """The reference has it in another form (end, ended; fall, fell), or behind the name that is asked for."""
    assert grade(reply, reference, "text", question).correct


def test_pairs_whose_failures_were_left():
    """A fifth part, of questions as a first user has them: 54 of 59 agreed when it was run, without a false right, and
    its failures were left as they are."""
    found = [(pair, grade(pair["answer"], pair["reference"], "auto", pair["question"])) for pair in pairs_of(UNTOUCHED)]
    assert not any(its.correct and not pair["label"] for pair, its in found)
    assert len(found) == 59
    assert sum(its.correct is pair["label"] for pair, its in found) >= 54


@pytest.mark.parametrize("path", FILES)
def test_right_replies_seldom_score_below_wrong_ones(path):
    """Never where the right one is graded right; else, as rules do not know every right reply, in 1 % of all pairs."""
    found = [(pair["label"], graded(pair)) for pair in pairs_of(path)]
    assert all((its.score == 1) is its.correct and 0 <= its.score <= 1 for _, its in found)
    assert not any(its.correct and its.unsure for _, its in found)
    rights, wrongs = ([its.score for is_right, its in found if is_right is label] for label in (True, False))
    assert min(len(rights), len(wrongs)) > 70
    assert sum(right < wrong for right, wrong in product(rights, wrongs)) < 0.01 * len(rights) * len(wrongs)


def test_made_up_attacks_are_not_paid():
    """Of 50,984 replies that name the answer beside another, in 286 forms, one in 200 is graded right at most, and one
    in 50 scores at all."""
    found = [grade_text(reply, reference, question) for _, reply, reference, question in attacks(pairs_of(HELD_OUT))]
    assert len(found) > 50_000
    assert sum(its.correct for its in found) <= 0.005 * len(found)
    assert sum(its.score > 0 for its in found) <= 0.02 * len(found)


@pytest.mark.parametrize("path", FILES)
def test_a_reference_is_right_against_itself(path):
    for pair in pairs_of(path):
        for question in (pair["question"], None):
            for form in ("{}", "**{}**", " {}\n"):
                found = grade_text(form.format(pair["reference"]), pair["reference"], question)
                assert (found.correct, found.score) == (True, 1.0), (pair["reference"], question)
    short = [p for p in pairs_of(path) if type_of(p["reference"]) and p["lang"] == "en"]
    assert len(short) > 40
    for pair, form in product(
        short, ("The answer is {}.", "I think it is {}.", "Sorry, my answer was wrong. It is {}.")
    ):
        assert grade_text(form.format(pair["reference"]), pair["reference"], pair["question"]).correct, pair


# --- partial credit ----------------------------------------------------------------------------------------------


def test_partial_credit_is_the_share_of_the_key_and_never_that_of_the_sentence():
    question, reference = "Which seas border Italy?", "the Adriatic, the Ionian, the Ligurian and the Tyrrhenian"
    scores = [
        grade_text(said, reference, question).score
        for said in ("Adriatic", "Adriatic, Ionian", "Adriatic, Ionian, Ligurian")
    ]
    assert scores == pytest.approx([0.99 / 4, 0.99 / 2, 0.99 * 3 / 4])
    assert grade_text("Lyon", "The capital of France is Paris.", CAPITAL).score == 0
    assert grade_text("The capital of France is Lyon.", "The capital of France is Paris.", CAPITAL).score == 0
    assert grade_text("Paris in France lies above the sea.", "Paris", CAPITAL).score == pytest.approx(0.99 / 2)


TEXTS = st.text(st.sampled_from("Paris Lyon or not is, .!?()[]-/'\"*#가파리은는이다요 1942:%°\n"), max_size=80)


@given(TEXTS, TEXTS, st.one_of(st.none(), TEXTS))
def test_any_text_has_a_grade(reply, reference, question):
    found = grade(reply, reference, "text", question)
    assert 0 <= found.score <= 1
    assert (found.score == 1) is found.correct
    assert not (found.correct and found.unsure)
    assert found == grade(reply, reference, "text", question)


# --- nothing hangs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "part",
    [
        *(
            "a ",
            "(",
            "()",
            "(a) ",
            "[가(a",
            "-",
            "- a\n",
            "a-",
            "가나다 ",
            "가",
            "이",
            "of the ",
            "not a ",
            "not, ",
            "? ",
            "a? ",
        ),
        *(
            ". ",
            "1 ",
            "1,",
            "1만 ",
            "one ",
            "열",
            "천 ",
            "A. ",
            "A.B.",
            "May 1 ",
            "1:11 ",
            "a or ",
            "some ",
            "흔히 ",
            "으로, ",
        ),
        *(
            "my previous ",
            "the answer is ",
            "wait, ",
            "지만 ",
            "a/",
            "x",
            "Paris, ",
            "1999-01-01 ",
            "\n",
            " ",
            "'",
            "<a>",
            "아니라 ",
        ),
    ],
)
def test_no_long_reply_takes_long(part):
    """20,000 characters, the slowest of which take some tens of milliseconds; a bad pattern would take minutes."""
    for reference, question in (
        ("Paris", CAPITAL),
        ("파리", "프랑스의 수도는?"),
        ("yes", "Is it so?"),
        ("1889", "When?"),
    ):
        started = time.process_time()
        grade((part * 20_000)[:20_000], reference, "text", question)
        assert time.process_time() - started < 3


@pytest.mark.parametrize("said", ["time:13", "date:1", "date:", "time:1:2:3", "date:1-2-3-4", "time:9:10q", "date:2-"])
def test_text_that_looks_like_a_mark_of_ours_is_text(said):
    """Dates and times are marked in the text while it is read; a model may write what looks like a mark."""
    assert not grade(said, "the cat", "text").correct
    assert not grade("the cat", said, "text").correct
    assert grade(said, said, "exact").correct
