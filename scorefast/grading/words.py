"""Normalize the words of English and Korean texts for comparison. Imports no torch.

`normal` writes dates, times and numbers one way, then `words` gives each word its forms. Two words are the same if they
share a form: kilometres and km, wrote and written, theatre and theater, 일어납니다 and 일어난다. An apparent Korean
particle may belong to the noun (나이, 사과), so a stem of one syllable is a `weak` form, which equals only whole words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from scorefast.grading import vocabulary
from scorefast.grading.numbers import parse_number
from scorefast.grading.vocabulary import (
    COUNTED,
    ENDINGS,
    MONTHS,
    NATIVE,
    NATIVE_TENS,
    NUMBERS,
    ORDINALS,
    PARTICLES,
    SAME,
    SCALES,
    SINO,
    SUFFIXES,
    TENS,
    UNITS,
)

_VALUES = {word: i for i, word in enumerate(NUMBERS.split())} | {w: 10 * i for i, w in enumerate(TENS.split(), 2)}


def _alternatives(names: Iterable[str]) -> str:
    return "|".join(sorted(names, key=len, reverse=True))


_MONTH = f"(?P<month>{_alternatives([*MONTHS, *(m[:3] for m in MONTHS), 'sept'])})" + r"\b\.?"
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?\b"
_DATES = [
    re.compile(r"(?<!\d)(?P<year>\d{4})([-/.])(?P<month>\d{1,2})\2(?P<day>\d{1,2})(?!\d)"),
    re.compile(rf"\b{_MONTH} (?:the )?{_DAY}(?:(?:,|,? of)? (?P<year>\d{{4}})\b)?", re.I),
    re.compile(rf"\b{_DAY} (?:of )?{_MONTH}(?:(?:,|,? of)? (?P<year>\d{{4}})\b)?", re.I),
    re.compile(rf"\b{_MONTH}(?:,| of)? (?P<year>\d{{4}})\b", re.I),
    re.compile(r"(?:(?<!\d)(?P<year>\d{4})년 ?)?(?<!\d)(?P<month>\d{1,2})월 ?(?P<day>\d{1,2})일"),
    re.compile(r"(?<!\d)(?P<year>\d{4})년 ?(?P<month>\d{1,2})월"),
]
_TIMES = [
    re.compile(r"\b(?P<hour>\d{1,2}):(?P<minute>\d\d)(?!\d)(?:\s?(?P<half>[ap])\.?m\b\.?)?", re.I),
    re.compile(r"\b(?P<hour>\d{1,2})(?:\s?(?P<half>[ap])\.?m\b\.?| o'?clock\b)", re.I),
    re.compile(
        r"(?P<half>오전|오후|아침|저녁|새벽|밤|낮)? ?(?<!\d)(?P<hour>\d{1,2})시(?!간)"
        r" ?(?:(?P<minute>\d{1,2})분|(?P<thirty>반))?"
    ),
]
_PAST = re.compile(r"\b(?:a )?(half|quarter|\d{1,2})(?: minutes)? (past|after|to|before) (\d{1,2})\b(?!:)", re.I)
_BETWEEN = re.compile(
    r"(?<=\d)(?: ?[~:-] ?| to | ?(?:대|에서) ?)(?=\d+(?![\w.]))(?<!time:\d:)(?<!time:\d\d:)"
)  # a score, a range
_NO_NUMBER = re.compile(r"\b(?:no|any|every|some|this|that|each|the|which|another) one\b|\bone (?:of|another)\b", re.I)
_COUNT = _alternatives([*_VALUES, *SCALES])
_ENGLISH = re.compile(
    rf"\b(?:{_COUNT}|\d+(?:\.\d+)?(?= (?:{'|'.join(SCALES)})))(?:[ -]+(?:and )?(?:{_COUNT}))*\b", re.I
)
_DOZEN = re.compile(r"\b(?:(\d+)|a) dozen\b", re.I)
_DIGIT = "[일이삼사오육칠팔구]"
_COUNTED = "|".join(COUNTED.split())
_BELOW_MYRIAD = f"(?:{_DIGIT}?천)?(?:{_DIGIT}?백)?(?:{_DIGIT}?십)?{_DIGIT}?"
_KOREAN = re.compile(  # before a counter; but 이 사람 is this person
    rf"(?<![가-힣\d])(?:(?=[가-힣])(?P<tens>{'|'.join(NATIVE_TENS)})?(?P<ones>{_alternatives(NATIVE)})?"
    rf"|(?![일이] ?(?:{_COUNTED}))(?=[가-힣])(?P<sino>(?:{_BELOW_MYRIAD}만 ?)?{_BELOW_MYRIAD}))"
    rf"(?= ?(?:{_COUNTED}))"
)
_MYRIADS = re.compile(r"(?<![\d.])(?:\d[\d,]{0,15}(?:\.\d+)? ?[천백]?[조억만천백] ?){1,4}(?:\d{1,4}(?!\d))?")
_SIGNS, _TAG = re.compile("[<>|→⇒]"), re.compile(r"</?[A-Za-z]{1,10}/?>")
_ARROW = re.compile(r"(?<=\w) ?(?:[-=]?>|[|→⇒]) ?(?=[^\W\d])")
_QUOTES = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "−": "-", "–": " - ", "—": " - ", "·": ",", "、": ","})
# A particle after a number or a Latin word; 도, 일 and 만 are also units.
_ATTACHED = re.compile(
    rf"(?<=[A-Za-z0-9%°])(?!(?:도|일|만|인)(?![가-힣]))(?:{_alternatives(PARTICLES.split())})(?![가-힣])"
)
# Initials with the next word; not the end of a sentence as in `It is vitamin C. It is in fruit`.
_STARTERS = "It|The|This|That|These|He|She|They|We|You|In|But|So|No|Wait|And|A|An|There|What|Its|His|Her|I"
_DOTTED = re.compile(rf"\b(?:[A-Z]\. ?)+(?! ?(?:{_STARTERS})\b)(?=(?P<name>[A-Z][a-z])?)")


def normal(text: str) -> str:
    """The text without markup and symbols, with dates, times and numbers in a normal form."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).translate(_QUOTES)
    if text.isupper() and " " in text and len(text) > 20:
        text = text.lower()
    if _SIGNS.search(text):
        text = _TAG.sub("", text)
        text = _ARROW.sub(", ", text)
    text = re.sub(r"[*`\"~^|\\]|(?<!\w)[_']|[_'](?!\w)|(?<![A-Za-z])#", "", text)
    text = re.sub(r"[^\w\s.,;:!?()%$°€₩/&'+#<>≤≥-]|[<>](?! ?-?\d)", " ", text)
    text = re.sub(r"°\s?([CF])\b", lambda m: " degrees Celsius" if m[1] == "C" else " degrees Fahrenheit", text)
    text = _numbers(text)
    if any(c.isdigit() for c in text):
        for pattern in _DATES:
            text = pattern.sub(_date, text)
        text = _PAST.sub(_past, text)
        for pattern in _TIMES:
            text = pattern.sub(_time, text)
        text = _BETWEEN.sub("-", text)
    text = re.sub(r"(?i:\b(?:noon|midday)\b)|정오", "time:12:00p", text)
    text = re.sub(r"(?i:\bmidnight\b)|자정", "time:12:00a", text)
    if not text.isascii():
        text = _ATTACHED.sub("", text)
    text = _DOTTED.sub(_initials, text)
    text = re.sub(r"\b(Dr|Mr|Mrs|Ms|St|Jr|Sr|Mt|vs|approx|Prof)\.", r"\1", text)
    return re.sub(r"(?<=[^\W\d])-(?=[^\W\d])", "", text)


def _initials(match: re.Match[str]) -> str:
    """J. R. R. Tolkien, J.R.R. Tolkien: J R R Tolkien; U.S. law: US law."""
    letters = re.findall("[A-Z]", match.group())
    if match["name"] or len(letters) == 1:
        return " ".join(letters) + " " if match["name"] else match.group()
    return "".join(letters) + " "


def _numbers(text: str) -> str:
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", in_digits(text))


def in_digits(text: str) -> str:
    """The text with its English and Korean number words in digits."""
    if "one" in text:
        text = _NO_NUMBER.sub("someone", text)
    text = _ENGLISH.sub(_english, text)
    if "dozen" in text:
        text = _DOZEN.sub(lambda m: str(12 * int(m[1] or 1)), text)
    if not text.isascii():
        text = _KOREAN.sub(_korean, text)
        text = _MYRIADS.sub(_myriads, text)
    return text


def _english(match: re.Match[str]) -> str:
    """twenty-four: 24; two hundred and five: 205; 5 million: 5000000."""
    total = part = 0.0
    for word in re.findall(rf"{_COUNT}|\d+(?:\.\d+)?", match.group().lower()):
        if word in SCALES and word != "hundred":
            total, part = total + (part or 1) * SCALES[word], 0
        elif word == "hundred":
            part = (part or 1) * 100
        else:
            part += _VALUES[word] if word in _VALUES else float(word)
    return f"{total + part:.12g}" if total + part < 1e12 else match.group()


def _korean(match: re.Match[str]) -> str:
    """스물네 (개): 24; 이백오십 (명): 250."""
    if match["sino"]:
        above, myriad, below = match["sino"].rpartition("만")
        return str((_sino(above) or 1) * 10_000 + _sino(below.strip()) if myriad else _sino(below))
    if not match.group():
        return ""
    return str(NATIVE_TENS.get(match["tens"], 0) + NATIVE.get(match["ones"], 0))


def _sino(text: str) -> int:
    total = digit = 0
    for character in text:
        if (value := SINO[character]) < 10:
            digit = value
        else:
            total, digit = total + (digit or 1) * value, 0
    return total + digit


def _myriads(match: re.Match[str]) -> str:
    number = parse_number(match.group().strip())
    return f"{number.value} " if number is not None else match.group()


def _date(match: re.Match[str]) -> str:
    parts = match.groupdict()
    month = parts["month"].lower()
    number = (
        int(month) if month.isdigit() else 1 + next(i for i, name in enumerate(MONTHS) if name.startswith(month[:3]))
    )
    day = f"-{int(parts['day']):02}" if parts.get("day") else ""
    return f" date:{parts.get('year') or ''}-{number:02}{day}{_gap(match)}"


def _past(match: re.Match[str]) -> str:
    minutes = {"half": 30, "quarter": 15}.get(match[1].lower()) or int(match[1])
    later = match[2].lower() in ("past", "after")
    hour = int(match[3]) if later else (int(match[3]) - 2) % 12 + 1
    return f"{hour}:{minutes if later else 60 - minutes:02}"


def _time(match: re.Match[str]) -> str:
    parts = match.groupdict()
    half = (parts.get("half") or "").lower()
    half = half and ("a" if half in ("a", "오전", "아침", "새벽") else "p")
    minute = 30 if parts.get("thirty") else int(parts.get("minute") or 0)
    return f" time:{int(parts['hour'])}:{minute:02}{half}{_gap(match)}"


def _gap(match: re.Match[str]) -> str:
    """A space, or "" before a Korean particle."""
    return "" if "가" <= match.string[match.end() : match.end() + 1] <= "힣" else " "


@dataclass(frozen=True, slots=True)
class Word:
    """text: as in the normal form. forms, weak: see the module. name: begins with a capital. neutral: states nothing by
    itself. sound: a transliteration key that compares Latin and Korean spellings of a name."""

    text: str
    forms: frozenset[str]
    weak: frozenset[str] = frozenset()
    name: bool = False
    neutral: bool = False
    sound: str = ""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Word):
            return NotImplemented
        if not self.forms.isdisjoint(other.forms):
            return True
        return not (self.forms.isdisjoint(other.weak) and self.weak.isdisjoint(other.forms))

    __hash__ = None  # type: ignore[assignment]  # equality is not transitive

    def among(self, forms: frozenset[str]) -> bool:
        return not (self.forms.isdisjoint(forms) and self.weak.isdisjoint(forms))

    def sounds_like(self, other: Word) -> bool:
        """Whether a name in one script is this word in the other."""
        return (
            self.sound != "" and self.sound == other.sound and self.korean != other.korean and (self.name or other.name)
        )

    def whole(self) -> Word:
        """A word that equals only the same date, if this is a date."""
        return Word(self.text, frozenset({self.text})) if self.text.startswith("date:") else self

    @property
    def korean(self) -> bool:
        return "가" <= self.text[0] <= "힣"

    @property
    def numeric(self) -> bool:
        return self.text[-1].isdigit() or self.text.startswith(("date:", "time:"))

    @property
    def mark(self) -> bool:
        return self.text in ",&/"


# A whole date or time as `normal` writes it: `date:1969-07-20`, `date:-09-01`, `time:9:10`, `time:9:10p`.
_MARKED = r"date:\d*-\d+(?:-\d+)?(?![\w:])|time:\d+:\d+[ap]?(?![\w:])"
_TOKEN = re.compile(
    rf"{_MARKED}"
    r"|\d+(?:-\d+)+(?![\w.])|(?<![\w.-])-?\d+(?:\.\d+)?(?:st|nd|rd|th)\b|(?<![\w.])-?\d+(?:\.\d+)?|\d+(?:\.\d+)?"
    r"|[가-힣]+|[A-Za-z]+\d\w*|[^\W\d가-힣]+(?:'[a-z]+)?[+#]*|[,%$€₩°&/]"
)


def words(text: str) -> tuple[Word, ...]:
    """The words of a text in normal form; `,`, `&` and `/` are words too."""
    return tuple(map(word, _TOKEN.findall(text.replace(";", ","))))


@lru_cache(maxsize=65_536)
def word(text: str) -> Word:
    if text.startswith(("date:", "time:")):
        return Word(text, frozenset(_date_forms(text) if text[0] == "d" else _time_forms(text)))
    if "가" <= text[0] <= "힣":
        return _korean_word(text)
    if text[0].isdigit() or text[0] == "-":
        return Word(
            text, frozenset({re.sub(r"(?<=\d)(?:st|nd|rd)$", "th", re.sub(r"(\.\d*?)0+$", r"\1", text).rstrip("."))})
        )
    return _english_word(text)


def _date_forms(text: str) -> set[str]:
    """A date also states its parts: 20 July 1969 is also 20 July, July 1969 and 1969."""
    year, month, *day = text[5:].split("-")
    forms = {text, f"date:-{month}-{day[0]}"} if day else {text}
    return forms | ({f"date:{year}-{month}", year} if year else set())


def _time_forms(text: str) -> set[str]:
    """9:10 equals 9:10 a.m. and 9:10 p.m., and 21:10 equals 9:10 p.m.; 9:10 does not equal 21:10."""
    hour, minute = int(text[5:].split(":")[0]), text[:-1].split(":")[2] if text[-1] in "ap" else text.split(":")[2]
    clock = f"{hour % 12}:{minute}"
    if text[-1] in "ap":
        return {clock + text[-1], f"{clock} maybe {text[-1]}"}
    if not 1 <= hour <= 12:
        return {clock + ("p" if hour >= 12 else "a"), text}
    return {clock, f"{clock} maybe a", f"{clock} maybe p"}


_GROUPS: dict[str, str] = {
    other: group.split()[0] for group in re.split("[;\\n]", SAME.strip()) for other in group.split()
}
_UNIT_OF = {name: unit for unit, names in UNITS.items() for name in (unit, *names.split())}
_ORDINAL_OF = {name: f"{i}th" for i, name in enumerate(ORDINALS.split(), 1)}


def _english_word(text: str) -> Word:
    low = text.lower()
    if not low.isascii():
        low = "".join(c for c in unicodedata.normalize("NFD", low) if not unicodedata.combining(c))
    low = re.sub(r"'(?:s|m|re|ve|ll|d)$", "", low)
    lemma = _GROUPS.get(text) or _GROUPS.get(low) or _singular(low)
    lemma = _GROUPS.get(lemma, lemma)
    if len(lemma) > 4:
        lemma = re.sub(
            r"(?<=\w\w)our$", "or", re.sub(r"(?<=\w)tre$", "ter", re.sub(r"(?<=\w\w)is(?=e$|ation$)", "iz", lemma))
        )
    forms = {lemma, _UNIT_OF.get(lemma, lemma), _ORDINAL_OF.get(lemma, lemma)}
    if text[0].islower() and len(low) > 4:
        forms.add(re.sub(r"(?:ing|ed|ly|er|or|e)$", "", lemma) + "~")
    if text[0].islower() and len(low) > 2:  # end, ended, ending
        forms.add(re.sub(r"(?<=\w\w\w)(?:ing|ed)$|(?<=\w\w)e$", "", lemma) + "^")
    neutral = low in _FUNCTION or (text[0].islower() and not _NEUTRAL.isdisjoint((low, lemma)))
    if neutral and len(text) > 1 and text.isupper():  # WHO
        return Word(text, frozenset({text} if lemma == low else {text, lemma}), name=True)
    return Word(text, frozenset(forms), name=text[0].isupper(), neutral=neutral, sound=_latin_sound(low))


def _singular(low: str) -> str:
    if re.search(r"\w\wies$", low):
        return low[:-3] + "y"
    if re.search(r"(?:ss|[b-df-hj-np-tv-z]us|x|ch|sh)es$", low):  # buses, not houses or rises
        return low[:-2]
    return low[:-1] if re.search(r"\w\w[^sui']s$", low) else low


_STEM = re.compile(rf"(.+?)(?:{_alternatives(PARTICLES.split())})")
_SUFFIX = re.compile(rf"(..+?)(?:{_alternatives(SUFFIXES.split())})")
_CLOSING = str.maketrans("ㄴㄹㅂㅆ", "ᆫᆯᆸᆻ")
_ENDING = re.compile(
    f"(.+?)(?:{_alternatives(unicodedata.normalize('NFD', e.translate(_CLOSING)) for e in ENDINGS.split())})"
)
# Vowels contracted with an ending: 해 하, 돼 되, 려 리, 떠 뜨, 와 오, 워 우.
_CONTRACTED = [
    tuple(unicodedata.normalize("NFD", s)[1:] for s in pair) for pair in ("돼되", "려리", "떠뜨", "와오", "워우")
]
_CONTRACTED += [("\u1112\u1162", "\u1112\u1161")]


def _korean_word(text: str) -> Word:
    stems = {text}
    for _ in range(2):  # 나라 + 들 + 은
        stems |= {m[1] for s in stems if (m := _STEM.fullmatch(s))}
    forms = {s for s in stems if len(s) > 1} | {text}
    forms |= {_GROUPS[s] for s in forms if s in _GROUPS}
    weak = (stems - forms) | {m[1] for s in forms if (m := _SUFFIX.fullmatch(s))}
    for verb in _verbs(text):
        forms.add(verb)
        if len(verb) > 3 and verb[-2] in "하되":
            weak.add(verb[:-2])
    forms |= {_UNIT_OF[s] for s in stems if s in _UNIT_OF}
    sound = min((s for s in forms if "가" <= s[0] <= "힣" and s[-1] != "~"), key=len)
    neutral = not _NEUTRAL.isdisjoint(forms)
    return Word(text, frozenset(forms), frozenset(weak), neutral=neutral, sound=_korean_sound(sound))


def _verbs(text: str) -> set[str]:
    """Possible stems of a verb, with `~`: 일어나~ for 일어납니다 and 일어난다. Empty for a word without a verb ending.

    The ㄹ of 만들다, which 만든 drops, and the honorific 시 are left out.
    """
    spelled = unicodedata.normalize("NFD", text)
    match = _ENDING.fullmatch(spelled)
    if not match and not spelled.endswith(tuple(short for short, _ in _CONTRACTED)):
        return set()
    stem = (match[1] if match else spelled).removesuffix("ᆯ")  # 이루어져 has no separate ending
    stems = {stem, unicodedata.normalize("NFD", text.removesuffix("요"))} if text.endswith("요") else {stem}
    stems |= {stem.removesuffix(short) + long for short, long in _CONTRACTED if stem.endswith(short)}
    composed = {unicodedata.normalize("NFC", s) for s in stems}
    return {s.removesuffix("시") + "~" for s in composed if "가" <= s[-1] <= "힣" and s != "시"}


def ends_as_verb(word: Word) -> bool:
    """True for 있습니다 and 먹는다; False for 파리입니다 and 파리다, a noun with the copula."""
    copula = re.search(r"(?:입니다|이다|이에요|예요|였다|이었다|였습니다|이었습니다|이야|이요|이죠)$", word.text)
    return not copula and re.search(r"(?:[습합됩]니다|[가-힣]니다|다|요|죠)$", word.text) is not None


_SPELLINGS = [("ch", "s"), ("sh", "s"), ("ph", "p"), ("th", "t"), ("ng", "n"), ("x", "ks"), ("qu", "k")]
_LETTERS = str.maketrans("gcqbfvdlzj", "kkkppptrss", "hwy")
_INITIALS, _VOWELS, _FINALS = "kknttrmppss.sssktp.", "aaaaeeeeooaoouueuuuui", ".kkknnntrrmrrrprmppssnssktp."


def _latin_sound(low: str) -> str:
    if not 3 <= len(low) <= 20 or not low.isalpha():
        return ""
    for letters, sound in _SPELLINGS:
        low = low.replace(letters, sound)
    return _sound(low.translate(_LETTERS))


def _korean_sound(text: str) -> str:
    spelled = ""
    for index in (ord(syllable) - ord("가") for syllable in text):
        spelled += _INITIALS[index // 588] + _VOWELS[index // 28 % 21] + _FINALS[index % 28]
    return _sound(spelled.replace(".", ""))


def _sound(spelled: str) -> str:
    """The first vowel, `a` if it starts the word, and two or more consonants: 베를린 and Berlin are `e:prn`."""
    vowel, consonants = re.search("[aeiou]", spelled), re.sub(r"(.)\1+", r"\1", re.sub("[aeiou]", "", spelled))
    if vowel is None or len(consonants) < 2:
        return ""
    return f"{vowel.group()}{'a' * (vowel.start() == 0)}:{consonants}"


def _forms(text: str) -> frozenset[str]:
    listed = set(text.split())
    return frozenset(listed | {_GROUPS.get(w) or _singular(w) for w in listed if w.isascii()})


_FUNCTION, _NEUTRAL = _forms(vocabulary.FUNCTION), _forms(vocabulary.FUNCTION + vocabulary.NEUTRAL.replace("-", ""))
CLASSES, TITLES = _forms(vocabulary.CLASSES), _forms(vocabulary.TITLES)
