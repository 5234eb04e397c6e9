"""Made-up wrong replies: the reference beside another answer of its kind, in many forms. A grader must not pay for one.

K: the reference. W: the reference of another question of the same type, with no content word of K.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from scorefast.grading.words import normal, words

ENGLISH = r"""
K or W | W or K | Either K or W. | Maybe K, maybe W. | K, W | W, K | K and W | K / W | K. W. | W. K. | K. It is W.
It is W. Not K. | W, not K. | Not K but W. | It isn't K, it's W. | Many say K, but it is W.
Some people think it is K. It is W. | Although many answer K, it is W. | I thought K; the answer is W.
I thought it was K, it is W. | At first I said K. The answer is W. | K? No, W. | K? It is W. | Is it K? It is W.
W (K) | K (W) | K (or W) | W, often confused with K | W, unlike K | W, also known as K | K, also known as W
W instead of K. | Instead of K, W. | K was my first guess, I now say W.
My first answer was K. The correct answer is W. | The answer is K. Wait, no, it is W.
The answer is K. No, the answer is W. | K is not the answer, W is. | K is wrong. It is W. | K is close, W is right.
W is right, K is wrong. | It used to be K, now it is W. | Formerly K, now W. | K - W | W - K | K\nW | W\nK
1. K\n2. W | - K\n- W\n- K | K; W | K: W | K = W | K, actually W | K. Actually, W. | The answer is W. K.
W. K is a common mistake. | K is a common mistake. W. | After K, W. | Unlike K, W is what is asked for.
If not W, then K. | K unless W. | Not W? Then K or W. | W rather than K. | K as well as W. | Both K and W.
K in my opinion, W in yours. | K, although it is W. | K, but W. | K is W. | W is K. | W with K | K, then W.
First K, then W. | People say K. Experts say W. | According to some K, according to others W.
K could be right, W could be right. | It could be K. | Maybe K. | It is not K. | K is not right.
I doubt that it is K. | K? | Is it K? | I cannot say whether it is K. | The answer is K/W. | K... just kidding, W
Well, K; however, W | I would go with W over K. | K but actually W | The correct answer: W (not K)
K seems plausible; still W | Between K and W, W. | W > K | K vs W: W | It's a tie between K and W.
My answer: W. Alternative: K | K [W] | K - no: W | "K" is what you expect, W is true | W; K is a distractor
It cannot be K so W | Let me think: K? W? I'd say W. | W. (K) | W K | K W | K + W | K & W | K;W | K:W | K...W
K → W | K -> W | K => W | K ~ W | K\n\nW | In a sense K, in a sense W | K for some, W for others | K (which is W)
K who is W | K, which is W | K because W is the answer | K in W | K when W | Yes, K. No, W. | Not W but maybe K
K first and W second | Anything but K | K would be wrong | People say K | K is a myth; it is W | Wrong: K. Right: W
K X W | The answer could be K. | Possibly K | K, if not W | K is incorrect | It's W! K is just a guess.
There are K, W | I am torn between K and W | W beats K | Neither K nor W | K since W is | W - as K
The word K is not right here | Say K, mean W | K - that is, W | K, that is W | K, so W | K, then again W
K, or rather W | K I mean W | K no W | K sorry W | K. Sorry, W. | K. Correction: W. | K. Actually it's W.
Oops, not K: W | W, even though many say K | W although K is popular | While K is popular, W is right.
W is often mistaken for K | K is often mistaken for W | Its name is W, not K | They call it K; its name is W
The answer, K, is wrong; W. | K, K, K, W | W W W K | The following are possible: K, W | Option 1: K\nOption 2: W
(1) K (2) W | a) K b) W | First guess: K\nFinal guess: W | K\n---\nW | # K\n# W | **K**\n\n**W**
"""
KOREAN = r"""
K 또는 W | W 또는 K입니다. | K{이나} W | K{이거나} W입니다. | K 아니면 W | K, W | W, K | K{과} W | K. W.
K입니다. W입니다. | W입니다. K입니다. | K / W | W(K) | K(W) | K{이} 아니라 W입니다. | K{이} 아니고 W입니다.
K 말고 W입니다. | K 대신 W입니다. | K{이} 아닙니다. | K{은} 틀렸습니다. W입니다. | 많은 사람이 K라고 하지만 W입니다.
흔히 K라고 하는데 W입니다. | K라고 생각했지만 W입니다. | 처음에는 K라고 답했으나 W입니다. | K? 아니요, W입니다.
K인가요? W입니다. | K보다 W입니다. | W, 즉 K | K{은} W입니다. | W{은} K입니다. | K일 수도 있고 W일 수도 있습니다.
K일 수도 있습니다. | K도 맞고 W도 맞습니다. | K이고 W입니다. | K이며, W입니다. | 예전에는 K였지만 지금은 W입니다.
정답은 W입니다. K{은} 오답입니다. | 정답은 K입니다. 아니, W입니다. | K\nW | W\nK | 1. K\n2. W | - K\n- W | K, 아니 W
K인지 W인지 모르겠습니다. | K인지 확실하지 않습니다. | 어떤 사람은 K라고 합니다. W입니다. | K - W | K; W | K: W
K입니까? | 둘 중 하나입니다: K, W | K와 W 중 하나입니다. | W입니다. 흔히 K{으로} 착각합니다.
K{으로} 착각하기 쉽지만 W입니다. | K 및 W | K 그리고 W | 먼저 K, 다음 W | K에서 W{으로} 바뀌었습니다.
K{이} 아닐까요? W입니다. | K라는 말도 있지만 W{이} 맞습니다. | 정답은 K/W입니다. | K... 농담이고 W입니다.
글쎄요, K{이} 아니면 W입니다. | W{이} 정답이고 K{은} 오답입니다. | K{과} W 둘 다입니다. | K W | W K | K → W | K\n\nW
K [W] | W [K] | 누구는 K, 누구는 W | K{은} 아니고 W | K 아님. W. | K 아닙니다, W입니다.
K{이} 답일 것 같지만 W입니다. | K도 있고 W도 있습니다. | K라고 할 수도 있습니다. | 아마 K 아니면 W | K? W?
K일까요 W일까요 | W 그리고 K | W 및 K | W이자 K입니다. | K이자 W입니다. | K, 그러니까 W | K, 다시 말해 W | K, 실은 W
K. 죄송합니다, W입니다. | K입니다. 다시 생각해 보니 W입니다. | K{을} 떠올리기 쉽지만 정답은 W입니다.
정답 후보: K, W | 후보 1: K\n후보 2: W | (1) K (2) W | K인 줄 알았는데 W입니다. | K{이} 아니라고 생각합니다.
K{이} 정답은 아닙니다. | K{은} 정답이 아닙니다. | 정답은 K{이} 아닙니다. | K{이} 맞는지 모르겠습니다.
잘 모르겠지만 K 또는 W | K보다는 W | K{이} 틀리고 W{이} 맞습니다. | W{이} 맞고 K{이} 틀립니다. | W에 있는 K입니다.
K 아닌 W | K 대신에 W | W, K, W | K, W 중에서 W | K와 비슷한 W입니다. | K만큼 유명한 W입니다.
"""
_PARTICLES = {"을": "를", "이나": "나", "이거나": "거나", "과": "와", "이": "가", "은": "는", "으로": "로"}
FORMS = {
    script: [form.replace("\\n", "\n") for form in re.split(r" \| |\n", forms.strip())]
    for script, forms in (("en", ENGLISH), ("ko", KOREAN))
}


def type_of(reference: str) -> tuple[str, ...] | None:
    """Script and look of a short reference; None for a sentence or a yes."""
    said = [w for w in words(normal(reference)) if w.text != ","]
    if (
        len(said) > 4
        or re.search(r"\.$|(?<!이)(?<!입니)다$| is ", reference)
        or re.fullmatch(r"\W*(?:yes|no|true|false|네|예|아니요)\W*", reference, re.I)
    ):
        return None
    script = "ko" if re.search("[가-힣]", reference) else "en"
    if any(w.text.startswith(("date:", "time:")) for w in said):
        return script, said[0].text[:4]
    if re.search(r"\d", normal(reference)):
        return script, "number"
    if re.search(r",| and |과 |와 ", reference):
        return script, "list"
    return script, "name" if any(w.name for w in said) else "noun"


def attacks(pairs: list[dict[str, Any]], each: int = 1) -> Iterator[tuple[str, str, str, str]]:
    """(form, reply, reference, question); `each` other answers to a form and question."""
    known = {(p["question"], p["reference"]): type_of(p["reference"]) for p in pairs}
    for n, ((question, reference), kind) in enumerate(known.items()):
        key = _answer(reference)
        others = [o for o in dict.fromkeys(_answer(r) for (_, r), k in known.items() if k == kind) if _differ(key, o)]
        if kind is None or not others:
            continue
        for m, form in enumerate(FORMS[kind[0]]):
            for i in range(each):
                other = others[(n + 7 * m + 13 * i) % len(others)]
                yield form, _filled(form, key, other), reference, question


def _answer(reference: str) -> str:
    """The reference without its copula and brackets."""
    return re.sub(r"(?<=[가-힣])(?:입니다|이다)$", "", re.sub(r"\([^()]*\)", "", reference).strip(" ."))


def _differ(a: str, b: str) -> bool:
    return not any(x == y for x in words(normal(a)) for y in words(normal(b)))


def _filled(form: str, key: str, other: str) -> str:
    """The form with K and W in their places, and 이 or 가, 은 or 는 after their last sound."""

    def put(match: re.Match[str]) -> str:
        word, particle = key if match[1] == "K" else other, match[2] or ""
        closed = "가" <= word[-1] <= "힣" and (ord(word[-1]) - 0xAC00) % 28 > 0
        return word + (particle if closed or not particle else _PARTICLES[particle])

    return re.sub(r"(?<![A-Za-z])([KW])(?![A-Za-z])(?:\{(\w+)\})?", put, form)
