"""Extract the letter of a multiple-choice answer. Imports no torch."""

from __future__ import annotations

import re
import unicodedata

from scorefast.grading.answer import DENIED_AFTER, RETRACTED, cached_if_short, final_answer, unlatexed

_CIRCLED = str.maketrans("①②③④⑤⑥⑦⑧⑨⑩ⓐⓑⓒⓓⓔⒶⒷⒸⒹⒺ", "ABCDEFGHIJABCDEABCDE")
LETTER_ALONE = re.compile(r"[(\[]?[A-J①-⑩][)\].]?")
_ARTICLE = re.compile(r"\s+(?!because|since|as|is|and|or|in|for|which|\()[a-z]", re.ASCII)
_AGAIN = re.compile(r"\W*(?:(?:no|wait|actually|rather)\b\W*)*", re.IGNORECASE)
_JOINT = re.compile(
    r"[\s)\]*_]*(?:[,/&;(]|\bor\b|\band\b|또는|혹은|아니면|이나|나|와|과)?\s*(?:or\b)?\s*(?:maybe|perhaps|also)?[\s(\[*_]*"
)


class _Patterns:
    """Patterns that find an option letter in a text. letter, small: patterns of one letter, and of it in lower case."""

    def __init__(self, letter: str, small: str):
        # At the start of an answer: `B`, `(B)`, `**B**`, `B) Paris`, `B입니다`, `option B`.
        self.leading = re.compile(
            rf"""[\s*_`$({{\["']*+ (?:(?:the\s+)?(?:option|choice|letter|answer|보기)\b[\s:]*+[*_`(\["']*+)?
            (?P<letter>{letter}) (?: [)\]}}*_`"'$]* (?=$|[\s.,:;!?)\]]|[가-힣]) )""",
            re.VERBOSE | re.IGNORECASE,
        )
        self.later = re.compile(
            rf"""\((?P<bracketed>{letter}|{small})\)
            | \b(?i:option|choice|choose|pick|select|go\ with|letter|so|therefore|thus|hence
              |it(?:'s|\ is|\ should\ be))\b
              [,:]?(?:\s+(?:here\s+)?is)?
              \s+(?:it(?:'s|\ is|\ must\ be)\s+|the\ (?:\w+\ )?(?:answer|choice|option)\ is\s+)?
              [*_(\["']*(?P<cued>{letter})(?![\w'’])
            | (?:^|[.,;:!]\s|\b(?i:think|believe|that|so|but|option|choice|answer)\s)[*_(]*(?P<right>{letter})
              (?=[*_)]*\s+is\s+(?:(?:the|a)\s+)?(?:correct|right|best|answer|good\s+(?:choice|answer|option))\b)
            | (?P<korean>{letter})(?=\s?(?:번|이다|입니다|이|가|를|을|라고)(?![A-Za-z]))""",
            re.VERBOSE,
        )
        self.option = re.compile(rf"[*_]*\(?{letter}(?:[).:][*_]*(?:\s+\S|$)|$)")
        self.another = re.compile(rf"(?<![A-Za-z0-9'])({letter})(?![A-Za-z0-9'])")
        self.bracketed = re.compile(rf"\({letter}\)")
        self.joined = re.compile(rf"[)\]*_]*\s*(?:번\s?)?(?:이?나|와|과|또는|혹은|아니면)\s*[(]?{letter}")


_FIVE = _Patterns("[A-E]", "[a-e]")
_TEN = _Patterns(r"(?:[A-HJ]|I(?!\s[a-z]|['’]))", "[a-j]")  # `I think` names no option


@cached_if_short
def reference_letter(reference: str) -> str | None:
    return chosen_letter(reference) or chosen_letter(reference, more=True)


def chosen_letter(reply: str, *, more: bool = False) -> str | None:
    """The one letter A to E that a reply commits to; None if there is none or several. more: A to J."""
    letters = _TEN if more else _FIVE
    final = final_answer(unicodedata.normalize("NFKC", reply.translate(_CIRCLED)))
    text = unlatexed(final.text).strip()
    if not final.marked:
        lines = [line for line in text.split("\n") if line.strip()]
        text = lines[-1].strip() if lines else ""
        if len(lines) > 1 and letters.option.match(text) and letters.option.match(lines[-2].strip()):
            return None  # a list of the options
    if text.endswith("?"):
        return None
    named = list(letters.another.finditer(text))
    if taken := [m.end() for m in RETRACTED.finditer(text) if named and m.end() <= named[-1].start()]:
        text = _AGAIN.sub("", text[taken[-1] :], count=1)  # `A. Wait, no, B.`
    match = letters.leading.match(text)
    alone = match is not None and not text[match.end() :].strip(" .*_`)\"'!$")
    goes_on = text[match.end("letter") :].lstrip("*_") if match else ""
    if match and not alone and not final.marked and not re.match(r"[)\].:]|\s*[—–]|\s--?\s", goes_on):
        match = None  # without a marker, a line that continues after its first letter is prose
    if match and match["letter"] in "Aa" and not alone and _ARTICLE.match(goes_on):
        match = None
    if match and match["letter"].islower() and not alone and not re.match(r"\W", text[match.end("letter") :]):
        match = None
    if match and not final.marked and letters.bracketed.search(text, match.end()):
        match = None  # it discusses the options
    if match and DENIED_AFTER.match(text, match.end("letter")):
        return None
    if match:
        return (
            None if _several(letters, text, match["letter"].upper(), match.end("letter")) else match["letter"].upper()
        )
    stated = [m for m in letters.later.finditer(text) if not _letter_denied(text, m)]
    stated = [m for m in stated if m["right"]] or stated
    if not stated or len({m["right"] for m in stated}) > 1:
        return None
    last = stated[-1]
    letter = (last["bracketed"] or last["cued"] or last["right"] or last["korean"]).upper()
    at = last.start() + max(last.group().upper().rfind(letter), 0)
    before = [
        m for m in letters.another.finditer(text, 0, at) if m[1] != letter and _JOINT.fullmatch(text[m.end(1) : at])
    ]
    return None if before or _several(letters, text, letter, at + 1) else letter


def _letter_denied(text: str, match: re.Match[str]) -> bool:
    before, after = text[max(match.start() - 20, 0) : match.end()], text[match.end() :]
    denied = re.search(
        r"(?:\bnot|n't|neither|nor|rule out|eliminate|\bif|whether|doubt)\s+(?:\w+\s+){0,2}[(*_\w]*\W*$", before, re.I
    )
    return bool(denied or DENIED_AFTER.match(after))


def _several(letters: _Patterns, text: str, letter: str, end: int) -> bool:
    """Whether another letter is joined to this one: `B or C`, `A, B`, `B와 C`."""
    other = letters.another.search(text, end)
    if letters.joined.match(text, end):
        return True
    if other is None or other[1] == letter or not _JOINT.fullmatch(text, end, other.start(1)):
        return False
    joined = text[end : other.start(1)].strip(" \n()[]*_")
    return bool(joined) or not re.match(r"\.?\s\w\w", text[other.end() :])  # `(B) (C)`, not `B) A dog`
