"""What counts as right: forms of numbers, what a reply commits to, agreement with labels, and that nothing hangs."""

from __future__ import annotations

import json
import os
import threading
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from scorefast import grading
from scorefast.answers import final_number, parse_number
from scorefast.grading import GRADERS, auto_grader, grade, without_question
from scorefast.math_worker import MathWorker
from tests.conftest import REPOSITORY, scorefast

GSM8K = REPOSITORY.parent / "shared" / "data" / "gsm8k"
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
    ("reference", "chosen"),
    [
        *(("18", "numeric"), ("... = 18\n#### 18", "numeric"), ("It is $18.", "numeric"), ("18 cm", "numeric")),
        *((r"\boxed{18}", "numeric"), (r"\boxed{x^2}", "math"), ("x^2 + 1", "math"), ("(1, 2)", "math")),
        *(("B", "choice"), ("(C)", "choice"), ("Paris", "exact"), ("May 1st", "exact"), ("서울", "exact")),
        *(
            ("3/4/2020", "exact"),
            ("12:30", "exact"),
            ("Apollo 11", "exact"),
            ("3 and 5", "exact"),
            ("Article 5 of the constitution", "exact"),
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


# --- agreement ---------------------------------------------------------------------------------------------------


def test_hard_pairs():
    """Labelled without knowledge of the grader; the two lines left are explained in benchmarks/results/graders.md."""
    pairs = lines(REPOSITORY / "tests" / "hard_pairs.jsonl")
    assert len(pairs) > 400
    wrong = {
        number
        for number, p in enumerate(pairs, 1)
        if grade(p["answer"], p["reference"], p["grader"], p.get("question")).correct is not p["label"]
    }
    assert wrong == {90, 219}


def test_held_out_pairs():
    """At first contact 192 of the 200 agreed; the line left is one that breaks off before any result."""
    pairs = lines(REPOSITORY / "tests" / "hard_pairs_held_out.jsonl")
    verdicts = [grade(p["answer"], p["reference"], p["grader"], p.get("question")).correct for p in pairs]
    assert len(pairs) == 200
    assert {n for n, (p, v) in enumerate(zip(pairs, verdicts, strict=True), 1) if v is not p["label"]} == {14}


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
}


@pytest.mark.parametrize("grader", GRADERS)
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_no_answer_takes_long(grader, name, monkeypatch):
    """Each way round: as the reply, and as the reference. Without the worker's limit some would never end."""
    monkeypatch.setattr(grading._WORKER, "seconds", 1.0)
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
    assert [{k: v for k, v in row.items() if k not in ("correct", "score")} for row in out] == rows
    assert "agreement 66.7 [20.8, 93.9] %" in done.stderr
    assert "line 3: labelled right: '18 or 20' for '18'" in done.stderr


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
