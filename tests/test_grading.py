"""What counts as right: forms of numbers, what a reply commits to, agreement with labels, and that nothing hangs."""

from __future__ import annotations

import json
import os
import threading
import time
from fractions import Fraction
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from scorefast.grading import formulas
from scorefast.grading.grade import _GRADES, GRADERS, auto_grader, grade, unusable_reference, without_question
from scorefast.grading.math_worker import MathWorker
from scorefast.grading.numbers import parse_number
from scorefast.grading.stated import final_number
from scorefast.grading.thoughts import THOUGHTS, split_thoughts, without_thoughts
from scorefast.schema import GraderName
from tests.conftest import REPOSITORY, scorefast

GSM8K = REPOSITORY.parent / "shared" / "data" / "gsm8k"
GIVEN = REPOSITORY.parent / "shared" / "cases" / "grader_pairs.jsonl"
needs_gsm8k = pytest.mark.skipif(not GSM8K.is_dir(), reason="lacks the GSM8K files, which are not in the repository")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("18", 18), ("$18.00", 18), ("-$3.5", -3.5), ("1,234.50", 1234.5), ("-0", 0), ("−5", -5), ("+7", 7)),
        *(("3/4", 0.75), ("75%", 0.75), ("75 %", 0.75), ("75 퍼센트", 0.75), (r"75\%", 0.75), ("1½", 1.5), ("¾", 0.75)),
        *(("1 1/2", 1.5), ("1.2e3", 1200), ("1.2 × 10³", 1200), (r"1.2 \times 10^{3}", 1200), ("2^10", 1024)),
        *((r"\frac{3}{4}", 0.75), (r"\dfrac34", 0.75), ("1{,}234", 1234), (r"1\,234", 1234), (r"\$18", 18)),
        *(("１８", 18), ("1\u202f234", 1234), ("1.5 million", 1_500_000), (".5", 0.5)),
        *(("3만", 30_000), ("1만 8천", 18_000), ("2억 3천만", 230_000_000), ("12만 3,456", 123_456), ("5천", 5000)),
        *(("12 500", 12_500), ("12'500", 12_500), ("12_500.5", 12_500.5), ("1.234.567", 1_234_567), ("1.234", 1.234)),
        *(("12 50", None), ("1234 500", None), ("12'50", None), ("1.234.567,8", None), ("100 200 30", None)),
        *(("1/0", None), ("1.2.3", None), ("3/4/2020", None), ("10:30", None), ("3rd", None), ("10^10^10", None)),
        *(("1, 2", None), ("x", None), ("", None), ("9" * 5000, None), ("1,23", None)),
    ],
)
def test_one_number_in_many_forms(text, value):
    number = parse_number(text)
    assert (number and float(number.value)) == value


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        # what follows the last marker, whatever is said after it
        *(("#### 18 and that took 2 steps", 18), (r"So \boxed{18} after 3 steps", 18), ("A: 18", 18)),
        *(("The answer is 18. I checked it 2 times!", 18), ("The answer is 18 eggs in 3 days", 18)),
        ("Final Answer: The final answer is $18$. I hope it is correct.", 18),
        *(("**Answer:** 18", 18), ("### Final Answer\n18", 18), ("정답은 18개입니다.", 18), ("x = 9 * 2 = 18", 18)),
        ("The answer is 18, because 9 * 2 = 18 and each of the 9 sells", 18),
        # no marker: what it ends on
        *(
            ("9 * 2 = 18, so she has 20 left", 20),
            ("area: 18 cm^2", 18),
            ("18 cm²", 18),
            ("1. One\n2. So 18\n3. Done", 18),
        ),
        ("went from 10 to 18.", 18),
        # taken back
        *(("The answer is 20. Wait, 9 * 2 = 18, so 18.", 18), ("The answer is not 18, it is 20.", 20)),
        *(("The answer is 18. No, it is 20.", 20), ("정답은 18입니다. 아니, 20입니다.", 20)),
        *(
            ("The answer is 18 minutes. So Tom has to wait 5 minutes less.", 18),
            (r"\boxed{18}. A common mistake is 2.", 18),
        ),
        # a worked solution after a marker: what that ends on
        *(
            ("A: She sold 48/2 = 24 in May. She sold 48+24 = 72 in all.", 72),
            ("### Answer:\n\n1. 2*12 = 24\n2. 3*24 = 72", 72),
        ),
        *(
            ("The answer is 10 + 8, which is 18.", 18),
            ("Answer: In 7 days she makes $18.", 18),
            ("<answer>18</answer>", 18),
        ),
        # nothing to commit to
        *(("x = 18 or x = 20", None), ("[18, 20]", None), ("16\n17\n18", None), ("The answer is 18 (or 20)", None)),
        *(("over 18", None), ("x>=18", None), ("I don't think the answer is 18", None), ("The answer is √18", None)),
        *(("18 or 20", None), ("The answer is 18 or 20", None), ("16, 17, 18", None), ("18, maybe 20", None)),
        *(("18~20", None), ("18-20", None), ("between 18 and 20", None), ("18 또는 20", None), ("18이거나 20", None)),
        *((r"\boxed{18} or \boxed{20}", None), (r"\boxed{18 \text{ or } 20}", None), ("#### 18, 20", None)),
        *(("not 18", None), ("It isn't 18", None), ("18이 아니다", None), ("I can rule out 18.", None)),
        *(("more than 18", None), ("at least 18", None), ("18 이상", None), ("Is it 18?", None), ("18?", None)),
        *(("9 + 9", None), ("", None), ("   ", None), ("I cannot determine it from 18", None), ("at 10:18", None)),
        # two forms of one value are no hedge
        *(("0.75 or 3/4", 0.75), ("The answer is 3/4, or 75%.", 0.75), ("1/2 = 0.5", 0.5)),
    ],
)
def test_the_one_number_a_reply_commits_to(reply, value):
    number = final_number(reply)
    assert (number and float(number.value)) == value


def surface(value: Fraction) -> st.SearchStrategy[str]:
    """Ways to write a value exactly, none of them as a percentage."""
    forms = [f"{value.numerator}/{value.denominator}" if value.denominator > 1 else str(value)]
    sign, size = ("-" if value < 0 else ""), abs(value)
    forms.append(rf"{sign}\frac{{{size.numerator}}}{{{size.denominator}}}")
    if 10**6 % value.denominator == 0:
        decimal = f"{float(size):.6f}"
        whole, _, fraction = decimal.partition(".")
        forms += [f"{sign}{decimal}", f"{sign}{int(whole):,}.{fraction}", f"{sign}${decimal}", f"{sign}{decimal}e0"]
        forms += [f"{sign}{float(size) / 1000:.9f} × 10^3", f"\u2212{decimal}" if value < 0 else f"+{decimal}"]
    if value.denominator == 1:
        full_width = "".join(chr(0xFF10 + int(d)) for d in str(size))
        forms += [f"{int(value):,}", f"{sign}{full_width}", f"{value}.", f"{value} cm"]
        forms += [f"{int(value):,}".replace(",", mark) for mark in (" ", "\u202f", "'", "_")]
        if size >= 10**6:
            forms.append(f"{int(value):,}".replace(",", "."))
    return st.sampled_from(forms)


TEMPLATES = st.sampled_from(
    [
        *("{}", "The answer is {}.", "7 * 3 = 21.\n#### {}", r"\boxed{{{}}}", "There are 12, so we get {}", "A: {}"),
        *("**{}**", "정답은 {}입니다.", "x = {}", "Final Answer: The final answer is ${}$. I hope it is correct."),
    ]
)
VALUES = st.one_of(st.integers(-9999, 10**7), st.fractions(-999, 999, max_denominator=40)).map(Fraction)


@given(st.data(), VALUES)
def test_equal_numbers_grade_equal_in_every_form(data, value):
    reply, reference = (data.draw(TEMPLATES).format(data.draw(surface(value))) for _ in range(2))
    assert grade(reply, reference, "numeric").correct, (reply, reference)


@given(st.data(), VALUES, VALUES)
def test_different_numbers_never_grade_equal(data, value, other):
    assume(value != other)
    reply = data.draw(TEMPLATES).format(data.draw(surface(value)))
    reference = data.draw(TEMPLATES).format(data.draw(surface(other)))
    found = grade(reply, reference, "numeric")
    assert not found.correct, (reply, reference)
    assert 0 <= found.score < 1


PARTS = [
    r"{}\sqrt{{2}}",
    r"{}\pi",
    "{}^x",
    r"\frac{{{}}}{{x}}",
    r"\log {}",
    r"{} + \sqrt 2",
    "{} < x",
    "{} and a half",
    "{}√2",
]


@given(
    VALUES, st.sampled_from(PARTS), st.sampled_from(["{}", r"\boxed{{{}}}", "The answer is {}.", "The answer is ${}$."])
)
def test_a_part_of_a_formula_is_no_number(value, part, template):
    formula = template.format(part.format(abs(value.numerator)))
    assert not grade(formula, str(abs(value.numerator)), "numeric").correct
    assert not grade(str(abs(value.numerator)), formula, "numeric").correct
    assert auto_grader(formula) != "numeric" or "half" in formula


@settings(deadline=None)  # the first formula starts the worker
@given(st.data(), st.sampled_from(GRADERS), st.sampled_from(THOUGHTS), st.text(max_size=60))
def test_a_thought_changes_no_verdict(data, grader, tags, thought):
    opening, closing = tags
    reply = data.draw(st.sampled_from(["18", "The answer is 18.", r"\boxed{B}", "Paris", "x"]))
    reference = data.draw(st.sampled_from(["18", "B", "Paris"]))
    assume(not any(tag.lower() in thought.lower() for pair in THOUGHTS for tag in pair))
    plainly = grade(reply, reference, grader)
    assert grade(f"{opening}{thought} The answer is 18, B, Paris.{closing}{reply}", reference, grader) == plainly
    assert grade(f"{thought}{closing}\n{reply}", reference, grader) == plainly
    assert grade(reply, f"{opening}{thought}{closing}{reference}", grader) == plainly
    unclosed = grade(f"{opening}{thought}{reply}", reference, grader)
    assert (unclosed.correct, unclosed.score, unclosed.reason) == (False, 0.0, "the thought never closes")


@given(VALUES, VALUES, VALUES)
def test_a_closer_number_never_scores_lower_and_only_right_scores_one(truth, a, b):
    near, far = sorted((a, b), key=lambda x: abs(x - truth))
    scores = [
        grade(f"{x.numerator}/{x.denominator}", f"{truth.numerator}/{truth.denominator}", "numeric")
        for x in (near, far)
    ]
    assert scores[0].score >= scores[1].score
    assert [s.score == 1 for s in scores] == [near == truth, far == truth]


@pytest.mark.parametrize(
    ("reply", "reference", "correct"),
    [("75%", "0.75", True), ("75%", "75", True), ("75", "75%", True), ("0.75%", "0.75", False), ("7.5%", "75", False)],
)
def test_a_percentage_is_a_share_and_a_number_of_per_cent(reply, reference, correct):
    assert grade(reply, reference, "numeric").correct is correct


# --- the other graders -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grader", "reply", "reference", "correct"),
    [
        *(("exact", "Let me think.\n**Paris**", "Paris", True), ("exact", "Paris or Lyon", "Paris", False)),
        *(
            ("exact", "The answer is paris!", "Paris", True),
            ("exact", "서울", "서울", True),
            ("exact", "서울은", "서울", False),
        ),
        *(
            ("exact", "-5", "5", False),
            ("exact", "3.5", "35", False),
            ("exact", "C", "C#", False),
            ("exact", "?", "!", False),
        ),
        *(("contains", "답은 서울입니다.", "서울", True), ("contains", "서울대학교", "서울", False)),
        *(("contains", "It is not Paris.", "Paris", False), ("contains", "Paris or London", "Paris", False)),
        *(("contains", "It isn't Sydney but Canberra.", "Canberra", True), ("contains", "Bart", "art", False)),
        *(
            ("choice", "The answer is (B)", "B", True),
            ("choice", "B or C", "B", False),
            ("choice", "정답: ②", "B", True),
        ),
        *(("choice", r"\boxed{\text{B}}", "(B)", True), ("choice", "It is rich in Vitamin C.", "C", False)),
        *(("choice", "A is wrong, so B.", "B", True), ("choice", "A is wrong, so B.", "A", False)),
        *(("choice", "정답은 B가 아닙니다", "B", False), ("choice", "A good question.", "A", False)),
        *(("math", r"The answer is $\sqrt{12}$.", r"\boxed{2\sqrt3}", True), ("math", "$x=1$ or $x=2$", "1, 2", True)),
        *(
            ("math", "(1,2)", "(2,1)", False),
            ("math", r"\boxed{(0,1]}", "(0,1)", False),
            ("math", "0.333", "1/3", False),
        ),
        *(
            ("math", r"2^{-98}", r"2^{-99}", False),
            ("math", "52_7", "52_8", False),
            ("math", r"\frac{1}{i}", "-i", True),
        ),
    ],
)
def test_texts_letters_and_expressions(grader, reply, reference, correct):
    found = grade(reply, reference, grader)
    assert found.correct is correct
    assert (found.score == 1) is correct
    assert 0 <= found.score <= 1


def test_a_text_nearer_to_the_reference_scores_higher():
    scores = [grade(text, "the treaty of Westphalia").score for text in ("xyz", "a treaty", "treaty of Westphalia")]
    assert scores == sorted(scores)
    assert len(set(scores)) == 3


@pytest.mark.parametrize(
    ("reply", "reference", "grader", "reason"),
    [
        *(("18", "18.0", "numeric", "18 = 18"), ("12", "18", "numeric", "reads 12, not 18")),
        *(("eighteen", "18", "numeric", "no number"), ("18 or 20", "18", "numeric", "several candidates")),
        *(("Is it 18?", "18", "numeric", "asked, not stated"), ("9 + 9", "18", "numeric", "a sum left undone")),
        *(
            (r"4\pi", "4", "numeric", "part of a formula"),
            ("more than 4", "4", "numeric", "denied, supposed, or only a bound"),
        ),
        *(("4", r"4\pi", "numeric", "the reference is not one number"), ("x+1", "1+x", "math", "mathematically equal")),
        *(("x", "y", "math", "not mathematically equal"), ("", "x", "math", "no formula")),
        *(("C", "B", "choice", "reads C, not B"), ("A or B", "B", "choice", "no single letter")),
        *(("Paris", "paris", "exact", "the same text"), ("Paris?", "Paris", "exact", "asked, not stated")),
        *(
            ("Not Paris", "Paris", "contains", "denied, or one of several"),
            ("Rome", "Paris", "contains", "not in the answer"),
        ),
        *(("<think>18", "18", "auto", "the thought never closes"),),
        ("18", "<think>18", "auto", "the thought of the reference never closes"),
    ],
)
def test_a_grade_says_why(reply, reference, grader, reason):
    assert grade(reply, reference, grader).reason == reason


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        *(
            ("<think>a</think>15", "15"),
            ("a</think>\n15", "15"),
            ("[THINK]a[/THINK]15", "15"),
            ("<THINK>a</THINK>15", "15"),
        ),
        *(("<think>a", None), ("<think>a</think>15<think>b", None), ("<think>a</think>", "")),
        *(("<b>15</b> <answer>15</answer>", "<b>15</b> <answer>15</answer>"), ("3 < 5 [sic]", "3 < 5 [sic]")),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>15<|return|>", "15"),
        *(("<|channel|>analysis<|message|>15", None), ("analysisWe add.assistantfinal15", "15")),
        *(
            ("analysis 3*5=15 final The answer is 15", "The answer is 15"),
            ("analysis of the final act", "analysis of the final act"),
        ),
    ],
)
def test_what_follows_the_thoughts_counts(text, rest):
    assert without_thoughts(text) == rest


def test_tags_of_thoughts_may_be_chosen():
    assert split_thoughts("{{a}}15<think>", (("{{", "}}"),)) == ("a", "15<think>")


@pytest.mark.parametrize(
    ("reference", "chosen"),
    [
        *(
            (text, "math")
            for text in ("x + y = 5", "x^2 + y^2 = 25", "3x - y + 13 = 0", r"x = \pm 3", r"\{1,2,3\}", "2x")
        ),
        *(
            (text, "math")
            for text in ("1331, 1728", "2√3", "x²+1", "x/2", "(0, 1]", "0 < x < 12.5", "x ≥ 3", "2:3", "±3")
        ),
        *((text, "math") for text in ("x = 1, y = 2", "5!", "π/2", "sqrt(2)", "x <= 5", "|x| < 2", "9 + 9", "{1, 2}")),
        *(
            (text, "numeric")
            for text in ("x = 5", "12 500", "18 km/h", "5 €", "9*2=18", "3 x 4 = 12", "P(A) = 0.5", "2^10")
        ),
        *(
            (text, "text")
            for text in ("May 5", "2:30 PM", "10:30:15", "2024-01-15", "C++", "B-52", "R2-D2", "n/a", "3-5")
        ),
        *(("H", "choice"), ("(j)", "text")),
        *(("18", "numeric"), ("... = 18\n#### 18", "numeric"), ("It is $18.", "numeric"), ("18 cm", "numeric")),
        *((r"\boxed{18}", "numeric"), (r"\boxed{x^2}", "math"), ("x^2 + 1", "math"), ("(1, 2)", "math")),
        *(("B", "choice"), ("(C)", "choice"), ("Paris", "text"), ("May 1st", "text"), ("서울", "text")),
        *(
            ("3/4/2020", "text"),
            ("12:30", "text"),
            ("Apollo 11", "text"),
            ("3 and 5", "text"),
            ("Article 5 of the constitution", "text"),
        ),
    ],
)
def test_auto_takes_the_grader_that_fits_the_reference(reference, chosen):
    assert auto_grader(reference) == chosen


def test_repeating_the_question_is_no_answer():
    question = "Tom has 12 apples. How many has he if he gets 6 more than 18?"
    assert not grade(question, "18", question=question).correct
    assert grade(f"{question}\n12 + 24 = 36", "36", question=question).correct
    assert without_question("18", "Which is larger, 18 or 20?") == "18"
    assert grade("Canberra", "Canberra", "exact", "Which city is the capital?\nMelbourne\nCanberra\nSydney").correct


# --- classes of replies, each with its near neighbours ------------------------------------------------------------


def verdicts(grader, reference, right=(), wrong=()):
    return [(grader, text, reference, verdict) for texts, verdict in ((right, True), (wrong, False)) for text in texts]


SUMS_WITH_UNITS = [
    *verdicts(
        "numeric",
        "12",
        right=[
            *("Answer: 5 apples + 7 apples = 12", "Answer:\n5 apples + 7 apples = 12 apples", "Answer: 3*4=12"),
            *("Answer: 5 apples plus 7 apples is 12 apples.", "Answer: 3 boxes * 4 apples = 12 apples"),
            *(
                "Answer: 3 boxes of 4 apples is 12 apples.",
                "Answer: 3 times 4 equals 12",
                "The answer is 3 times 4 = 12.",
            ),
            *("The answer is 5 apples + 7 apples = 12 apples.", "The answer is 60 minutes / 5 minutes = 12."),
            *("정답은 5개 + 7개 = 12개입니다.", "정답: 5개 + 7개 = 12개", "Answer: 6 eggs * $2/egg = $12"),
            *("Answer: 6+6 => 12", "6 + 6 → 12", r"$6+6 \Rightarrow 12$", "Answer: $36 \\div 3 = 12$"),
            *("Answer: 12, since 5 apples + 7 apples = 12 and 7 - 5 = 2", "The answer is 12 of the 20 apples."),
            *("The answer is 12 because 12 is even and 5 + 2 = 7", "The answer is 12 apples = 1 dozen."),
            *("Answer: 12 dollars is the price for 3 apples", "The answer is 12 boxes of 4 apples."),
        ],
        wrong=[
            *("Answer: 12 apples + 7 apples = 19 apples", "Answer: 5 apples + 12 apples", "12 apples + 5 apples"),
            *(
                "The answer is 12 apples + 5 apples.",
                "The answer is 3 boxes times 12 apples",
                "정답: 12개 + 7개 = 19개",
            ),
            *("Answer: 12 apples at $2 each = $24.", "Answer: 5 apples + 7 apples is not 12", "Answer: 5 + 7 = 12?"),
            *("Answer: 5 apples + 7 apples = 12 apples or 13 apples", "Answer: 5 + 2 = 7 + 12", "x => 12"),
        ],
    ),
    *verdicts("numeric", "24", right=["Answer: 12 apples at $2 each = $24."]),
    *verdicts(
        "numeric",
        "18",
        right=[
            *("A: 16 - 3 - 4 = 9 eggs. 9 * 2 = 18 dollars.", "A: 16 eggs minus 7 eggs = 9 eggs; 9 eggs at $2 = $18."),
            *(
                "Answer: 9*2 = 18. I checked it 2 times.",
                "Answer: 9 * 2 = 18\n\nCheck: 18 / 2 = 9",
                "A: 18 eggs. 2 * 2 = 4.",
            ),
        ],
    ),
]

HEADINGS = [
    *verdicts(
        "numeric",
        "12",
        right=[
            *("#### Step 1: add\n5 + 7 = 12\n\nSo there are 12 apples.", "#### 3. Total\nThe total is 12."),
            *("#### 2. Final Calculation\n5 + 7 = 12 apples", "#### Conclusion\nShe has 12 apples."),
            *("#### Solution\n5 + 7 = 12", "#### 12", "5 + 7\n#### $12\n\n", "#### 12 apples", "####12", "#### x = 12"),
            *(
                "#### 12\nI hope this helps in 2 ways.",
                "#### 12 apples.\n3 steps",
                "#### **12**\n\nLet me check: 12 - 5 = 7",
            ),
            *("#### 12 and that took 2 steps", "#### Final Answer\n12", "#### Answer: 12\nWe used 3 steps."),
        ],
        wrong=["#### 13\n12", "#### $11\n\nIt could be 12.", "#### 12 apples\n\n#### 13 apples"],
    ),
    *verdicts(
        "numeric",
        "1",
        wrong=["#### Step 1: add\n5 + 7 = 12\n\nSo there are 12 apples left.", "#### 1. Total\nThe total is 12."],
    ),
    *verdicts("numeric", "3/4", right=["#### 3/4", r"#### $\frac{3}{4}$" + "\nThat took 2 steps."]),
    *verdicts("choice", "B", right=["#### B", "#### (B)\nBecause A is wrong."], wrong=["#### A\nB"]),
    *verdicts("exact", "Paris", right=["The capital:\n#### Paris", "#### Conclusion\nParis"], wrong=["#### Lyon"]),
]

BOUNDS = [
    *verdicts(
        "numeric",
        "12",
        right=[
            *(
                "the minimum is 12",
                "The maximum value is 12",
                "최댓값은 12",
                "최대공약수 12",
                "최소 비용은 12달러입니다",
            ),
            *("Minimum: 12", "Max = 12", "x = 12 is the maximum", "It takes 12 min.", "12 apples, the minimum"),
            *("The answer is 12, at most 3 of them red.", "5 + 7\n= 12", "12명에게 넘겨주었다", r"\left(12\right)"),
            "The answer is 12 apples and at least 3 of them are red.",
        ],
        wrong=[
            *("12 at most", "12 at least", "12 apples at most", "12 minimum", "12 max", "The answer is 12 at most."),
            *(
                "12+",
                "The answer is 12+.",
                r"\boxed{12+}",
                r"\boxed{\ge 12}",
                r"$x \leq 12$",
                "at minimum 12",
                "max 12",
            ),
            *(
                "최소 12개",
                "최대 12개",
                "적어도 12개",
                "정답은 최소 12개입니다",
                "12개를 넘습니다",
                "12개를 넘지 않는다",
            ),
            *("12가 정답이 아니다", "12개가 정답이 아닙니다", "12는 답이 아니다", "12달러만이 아니다"),
        ],
    ),
]

LETTERS = [
    *verdicts(
        "choice",
        "B",
        right=[
            *("The answer is A. Wait, no, B.", "The answer is A. Wait, it should be B.", "A. Wait, no. B.", "Ｂ"),
            *("The answer is A. Correction: B.", "Answer: A. Hmm, actually B.", "정답은 A입니다. 아니, B입니다."),
            *("The correct answer is **B) A dog**.", "B) A dog", "B) E. coli", "The answer is B (A dog).", "B. A dog"),
            *(
                "I think B is the best choice because a dog is a mammal.",
                "B is a good choice.",
                "A is wrong. B is right.",
            ),
            "A is wrong, B is right.",
        ],
        wrong=[
            *("The answer is B. Wait, no, A.", "B. Wait, no. A.", "I doubt B is right.", "If B is right, we are lost."),
            *(
                "I don't think that B is right.",
                "Plan B is a good choice.",
                "B is a vitamin.",
                "B is wrong. A is right.",
            ),
            *("B C", "B) A)", "(B) (C)", "B or A dog", "Neither A nor B is right.", "A is right. B is right."),
        ],
    ),
    *verdicts(
        "choice",
        "A",
        right=[
            *("The answer is A) a dog.", "A) a dog", "I think A is the best choice because a dog is a mammal."),
            *("The answer is A because a dog barks.", "The answer is A. No other option fits, so A."),
        ],
        wrong=["The answer is a dog.", "A dog", "A. Wait, no. B.", "The answer is **a** dog.", "A good choice is B."],
    ),
]

INITIALS = [
    *verdicts(
        "exact",
        "J. K. Rowling",
        right=["The answer is J. K. Rowling", "The answer is J. K. Rowling. She wrote it.", "정답: J. K. Rowling"],
    ),
    *verdicts("exact", "J. R. R. Tolkien", right=["The answer is J. R. R. Tolkien."]),
    *verdicts("exact", "U.S. Steel", right=["The answer is U.S. Steel", "The answer is **U.S. Steel**."]),
    *verdicts("exact", "J", wrong=["The answer is J. K. Rowling"]),
    *verdicts(
        "exact", "Vitamin C", right=["The answer is Vitamin C. It is in fruit.", "The answer is Vitamin C.\nYes"]
    ),
    *verdicts("choice", "B", right=["The answer is B. It is right.", "The answer is B. Paris."]),
    *verdicts("contains", "Paris", wrong=["The answer is B. It is not in Paris."]),
]

UNDONE = [
    *verdicts(
        "math",
        "18",
        right=[r"\boxed{9+9=18}", "9 + 9 = 18", "36/2", r"\frac{36}{2}", r"\sqrt{324}", "x = 18", r"$1.8 \times 10^1$"],
        wrong=[
            "9 + 9",
            r"\boxed{2\cdot 9}",
            "The answer is 9+9.",
            "x = 20 - 2",
            r"36 \div 2",
            r"\boxed{9 + 9\text{ cm}}",
        ],
    ),
    *verdicts("math", "x = 5", right=["5"], wrong=[r"\boxed{2+3}", "x = 2+3"]),
    *verdicts("math", r"2\sqrt{3}+1", right=[r"\boxed{1 + 2\sqrt3}"]),
    *verdicts("math", r"\frac{1}{2}+\pi", right=[r"\boxed{\pi + 0.5}"]),
    *verdicts("math", r"3\cdot 2^{10}", right=[r"\boxed{2^{10} \cdot 3}", "3072"]),
    *verdicts("math", "x + 2", right=["$2 + x$"], wrong=["$2 + 2$"]),
    *verdicts("math", "(1, 2)", right=[r"\boxed{(1, 2)}"], wrong=["(2, 1)"]),
    *verdicts("math", "2 + 3", right=["5", "3 + 2"]),
]

OTHER_NUMBERS = [
    *verdicts("numeric", "5000", right=[r"5\times10^3", r"The answer is $5\cdot10^{3}$."], wrong=[r"5\times10^2"]),
    *verdicts(
        "numeric",
        "12",
        right=[
            *("12 apples (3 boxes of 4)", "She has **12** apples (3 boxes of 4 apples each).", "12개 (3상자에 4개씩)"),
            *("12 apples (5 + 7 = 12)", "The answer is 13. Correction: 12."),
        ],
        wrong=[
            *("12 (or 13)", "She has 12 apples (or 13 with 1 of Tom's)", "12 (3 + 4)", "20 apples (12 red, 8 green)"),
            *("The answer is 12. Correction: 13.", "I have 5 (3 red) or 12 (4 blue)"),
        ],
    ),
    *verdicts("numeric", "4", wrong=["12 apples (3 boxes of 4)"]),
    *verdicts("numeric", "13", right=["The answer is 12. Correction: 13."]),
]


@pytest.mark.parametrize(
    "cases",
    [SUMS_WITH_UNITS, HEADINGS, BOUNDS, LETTERS, INITIALS, UNDONE, OTHER_NUMBERS],
    ids=["sums with units", "headings", "bounds", "letters", "initials", "sums left undone", "other numbers"],
)
def test_what_counts_and_what_does_not(cases):
    assert [c for c in cases if grade(*c[1:3], c[0]).correct is not c[3]] == []


@pytest.mark.parametrize(
    ("grader", "usable", "unusable"),
    [
        ("numeric", ["18", "#### 18", "18 or 20 eggs", "½", "x = 5"], ["five", " ", "1/0", "B"]),
        ("choice", ["B", "(b)", "②", "B) Paris", "The answer is C."], ["K", "5", "A or B", "Paris", ""]),
        *((grader, ["five", "Paris", "x^2"], ["", " \n"]) for grader in ("exact", "contains", "math", "auto")),
    ],
)
def test_a_reference_that_makes_every_reply_wrong_is_told(grader, usable, unusable):
    assert [text for text in usable if unusable_reference(text, grader)] == []
    reasons = [unusable_reference(text, grader) for text in unusable]
    assert all(reason and reason.startswith("correct_answer ") for reason in reasons)
    assert (grader in str(reasons[0])) is (grader in ("numeric", "choice"))


# --- agreement ---------------------------------------------------------------------------------------------------


def test_hard_pairs():
    """Labelled without knowledge of the grader; the line left is explained in benchmarks/results/graders.md."""
    pairs = lines(REPOSITORY / "tests" / "hard_pairs.jsonl")
    assert len(pairs) > 400
    wrong = {
        number
        for number, p in enumerate(pairs, 1)
        if grade(p["answer"], p["reference"], p["grader"], p.get("question")).correct is not p["label"]
    }
    assert wrong == {90}


def test_held_out_pairs():
    """At first contact 192 of the 200 agreed; the line left is one that breaks off before any result."""
    pairs = lines(REPOSITORY / "tests" / "hard_pairs_held_out.jsonl")
    verdicts = [grade(p["answer"], p["reference"], p["grader"], p.get("question")).correct for p in pairs]
    assert len(pairs) == 200
    assert {n for n, (p, v) in enumerate(zip(pairs, verdicts, strict=True), 1) if v is not p["label"]} == {14}


def disagreeing(pairs: list[dict]) -> set[tuple[int, str]]:
    """(line, grader) of each pair and grader for which its label is meant."""
    graded = [(n, p, g) for n, p in enumerate(pairs, 1) for g in p["fair"].split()]
    return {(n, g) for n, p, g in graded if grade(p["answer"], p["reference"], g).correct is not p["label"]}


def test_number_pairs():
    """Thoughts, formulas, boxes, intervals, thousands, markers, letters. Written in four parts, each before it ran: at
    first contact 124 of 127, 108 of 113, 103 of 111 and 69 of 76 agreed. Of the last two parts four labels that a rule
    contradicts are left out, and two pairs that no rule here decides: a hedge taken back, and `E` for the constant e.
    So is `2:30` for `2:30 PM`, which the text grader takes."""
    pairs = lines(REPOSITORY / "tests" / "number_pairs.jsonl")
    assert len(pairs) == 420
    assert disagreeing(pairs) == set()


@pytest.mark.skipif(not GIVEN.is_file(), reason="lacks grader_pairs.jsonl, which is not in the repository")
def test_given_pairs():
    pairs = lines(GIVEN)
    assert len(pairs) == 75
    assert disagreeing(pairs) == set()


@needs_gsm8k
def test_agreement_with_published_labels():
    agreed = [
        grade(s["solution"], row["ground_truth"], grader, row["question"]).correct is s["is_correct"]
        for row in lines(GSM8K / "labelled_solutions.jsonl")
        for s in row.values()
        if isinstance(s, dict)
        for grader in ("numeric", "auto")
    ]
    assert len(agreed) == 2 * 2640
    assert sum(agreed) / len(agreed) >= 0.999


@needs_gsm8k
def test_official_answers_are_right_against_themselves_and_wrong_against_the_next():
    answers = [row["answer"] for row in lines(GSM8K / "train.jsonl")]
    finals = [Fraction(a.split("####")[1].strip().replace(",", "")) for a in answers]
    for i, answer in enumerate(answers):
        following = (i + 1) % len(answers)
        assert grade(answer, answer).correct
        assert grade(answers[following], answer).correct is (finals[following] == finals[i])


# --- nothing hangs -----------------------------------------------------------------------------------------------

ADVERSARIAL = {
    "nested braces": r"\boxed{" + "{" * 100_000 + "1" + "}" * 100_000 + "}",
    "nested parentheses": "(" * 5_000 + "1" + ")" * 5_000,
    "tower": "10^{10^{10^{10}}}",
    "factorial": "(10^9)!",
    "digits": "9" * 1_000_000,
    "boxes": r"\boxed{" * 100_000,
    "markers": "the answer is " * 100_000,
    "list": "1," * 500_000,
    "fractions": "1/" * 500_000,
    "alternatives": "or 1 " * 300_000,
    "spaces": "18" + " " * 5_000_000,
    "answers": "answer " * 300_000,
    "dollars": "$1" * 300_000,
    "questions": "1.?" * 100_000,
    "quotes": "The answer is " + "'" * 19_900 + " 18",
    "headings": "#### 1 " * 2_800 + "\nx",
    "initials": "The answer is " + "A. Bc " * 3_300,
    "sums": "Answer: " + "1 apples + " * 1_800 + "= 5",
    "parentheses": "1 (" * 3_000 + "1" + ")" * 3_000,
    "space within": "1" + " " * 19_000 + ")",
    "taken back": "A. Wait, no, " * 1_500 + "B",
    "thoughts": "<think>" * 50_000,
    "closed thoughts": "<think>a</think>" * 50_000,
    "lines behind a marker": "The answer is Answer" + "\n" * 18_900 + "4",
    "groups": "1 000 " * 3_000,
    "German thousands": "1" + ".234" * 4_900,
    "joined boxes": r"\boxed{1} and " * 1_300,
    "roots": "4" + r"\sqrt" * 3_900,
    "open sets": "{1," * 6_000,
    "subtractions": "x - " * 4_900 + "4",
    "backslashes": "\\" * 19_000 + "4",
    "per cents": "1%" * 9_000,
    "JSON": '"answer":' * 2_000 + '"' + "a\\" * 900,
}


@pytest.mark.parametrize("grader", GRADERS)
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_no_answer_takes_long(grader, name, monkeypatch):
    """Each way round: as the reply, and as the reference. Without the worker's limit some would never end."""
    monkeypatch.setattr(formulas.WORKER, "seconds", 1.0)
    started = time.monotonic()
    grade(ADVERSARIAL[name], "2x + 1", grader)
    grade("2x + 1", ADVERSARIAL[name], grader)
    assert time.monotonic() - started < 30


def test_the_math_worker_is_stopped_and_goes_on_off_the_main_thread():
    worker, verdicts = MathWorker(seconds=1.0), []

    def ask():
        verdicts.append(worker.equal("1", "10^{10^{10}}"))
        verdicts.append(worker.equal(r"\frac{1}{2}x", "x/2"))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join(60)
    assert verdicts == [False, True]


def test_an_interrupt_and_a_crash_of_the_worker_change_no_verdict():
    """Ctrl-C on a terminal reaches the whole process group; the run ends its step, so its grades have to hold."""
    worker = MathWorker()
    assert worker.equal("x+1", "1+x")
    process = worker._process
    assert os.getpgid(process.pid) != os.getpgid(0)
    process.kill()
    assert worker.equal("x+1", "1+x")
    assert not worker.equal(r"\begin{pmatrix}1\\2\end{pmatrix}\pi", r"\pi")
    assert worker._process.poll() is None


# --- the command -------------------------------------------------------------------------------------------------


def test_the_command_adds_verdicts_and_shows_agreement(tmp_path):
    rows = [
        {"answer": "It is 18.", "reference": "#### 18", "label": True, "kept": [1]},
        {"answer": "18 or 20", "reference": "18", "label": True},
        {"answer": "Lyon", "reference": "Paris", "label": False, "grader": "exact"},
        {"answer": 18, "reference": 18.0},
    ]
    (tmp_path / "f.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    done = scorefast("grade", "f.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    out = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["correct"] for row in out] == [True, False, False, True]
    added = {"correct", "score", "reason", "unsure"}
    assert [{k: v for k, v in row.items() if k not in added} for row in out] == rows
    assert [row["reason"] for row in out][:2] == ["18 = 18", "several candidates"]
    assert "agreement 66.7 [20.8, 93.9] %" in done.stderr
    assert "line 3: labelled right: '18 or 20' for '18'" in done.stderr
    assert "line 3: wrong: several candidates" not in done.stderr
    explained = scorefast("grade", "f.jsonl", "--explain", cwd=tmp_path)
    assert explained.stdout == done.stdout
    for line in ("line 1: right: 18 = 18: 'It is 18.' for '#### 18'", "line 3: wrong: several candidates: '18 or 20'"):
        assert line in explained.stderr


@pytest.mark.parametrize(
    ("reply", "reference", "reason"),
    [
        ("Three dozen eggs is thirty-six eggs.", "36 eggs", 'states "36 egg'),
        ("오후 1시예요.", "13시", 'states "time:13'),
        ("8,849 meters (29,032 feet)", "8,849 m", 'states "8849 m'),
        ("10 kilometers", "10 miles", "another unit: km"),
        ("10 miles", "10 miles", "10 = 10"),
        ("10", "10 miles", "10 = 10"),
        ("Maybe 36.", "36", "denied, supposed, or only a bound"),
        ("It is 35, often confused with 36.", "36", "reads 35, not 36"),
        ("36 is a common mistake.", "36", "denied, supposed, or only a bound"),
        ("18, maybe 36", "36", "several candidates"),
    ],
)
def test_auto_reads_a_short_text_for_a_number_and_its_unit(reply, reference, reason):
    found = grade(reply, reference, "auto")
    assert found.reason.startswith(reason)
    assert found.correct == (" = " in reason or reason.startswith("states"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "f.jsonl: line 2: not JSON"),
        ("[]", "line 2: expected an object"),
        ('{"answer": "1"}', "line 2: 'reference' is missing"),
        ('{"answer": "1", "reference": "1", "label": 1}', "line 2: 'label' is 1; expected true or false"),
        ('{"answer": "1", "reference": "1", "label": "yes"}', "line 2: 'label' is 'yes'"),
        ('{"answer": "1", "reference": "1", "grader": "vibes"}', "line 2: 'grader' is 'vibes'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    (tmp_path / "f.jsonl").write_text('{"answer": "1", "reference": "1"}\n' + line)
    done = scorefast("grade", "f.jsonl", cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_every_name_of_a_grader_has_one():
    assert {*get_args(GraderName)} == {"auto", *GRADERS} == {"auto", *_GRADES}
