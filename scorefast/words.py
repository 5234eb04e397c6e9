"""The words of a text in a normal form: what makes two words the same word, in English and Korean. Imports no torch.

`words` writes dates, times and numbers one way, then gives each word its forms. Two words are the same if they share a
form: kilometres and km, wrote and written, theatre and theater, 일어납니다 and 일어난다. A Korean particle at the end of a
word may also belong to its noun (나이, 사과), so a stem of one syllable is a `weak` form: it equals only a whole word.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from scorefast.answers import parse_number

# --- word lists --------------------------------------------------------------------------------------------------

# Words that state nothing by themselves: beside an answer they make no other answer.
_NEUTRAL = """
a an the this that these those such it its it's they them their there here he him his she her we us our you your i my me
of in on at by to for from with within into onto as than through over about and also too both all each every someone
is are was were be been being am do does did done has have had having can will would shall should must let
so then thus hence therefore now today currently really just only simply very quite most more much many mostly mainly usually
often generally commonly typically actually indeed certainly definitely well fairly probably approximately around roughly
which who whom whose what when where why how because if while
called known named considered referred located situated found stand stands stood lie lies belong belongs mean means become
becomes make makes made making use uses used using get gets got give gives gave given go goes went take takes took taken
happen happens occur occurs contain contains produce produces create creates help helps allow need needs include exist
cause causes begin begins end ends total equal equals own one ones thing things kind type sort sometimes example
answer correct right sure think believe guess say said see know confident certain please note okay ok yes final
question check checking checked again confirm conclusion fact widely officially traditionally popularly famously famous
large largest big biggest great main major well-known modern beautiful exactly namely year years old long high time place
world way part person people man woman name not no never cannot don't doesn't didn't isn't aren't wasn't weren't can't won't celsius
previous earlier initial pretty absolutely rather again
weigh weighs cost costs measure measures last lasts reach reaches run runs flow flows
그 그것 이것 저것 그건 이건 것 거 수 저 제 제가 나 내 우리 우리나라 당신 여기 거기 이 그리고 그래서 따라서 그러므로 즉 바로 또한 약 총 모두 가장
매년 주로 보통 대표 대표적 일반적 현재 오늘날 정답 답 질문 답변 확인 결과 결론 때문 위해 위하여 통해 통하여 따라 의해 중 중에서 세계 사람 이름 정도
있~ 없는~ 이~ 되~ 하~ 알려지~ 알려~ 불리~ 부르~ 말하~ 뜻하~ 위치하~ 생각하~ 속하~ 유명하~ 가능하~ 보~ 여기~ 여겨지~ 나타내~ 의미하~ 맞~ 같~ 대표하~ 해당하~ 아시~ 아니~ 않~ 없~ 못하~ 섭씨
생각 물론 아마 아마도 알기로는 알기로 큰 많은 전통 매우 아주 정말 겁 전체 각각 각
"""
# What an answer may be called: `the city of Paris`, `the planet Mars`, `Homer is the author of it`.
_CLASSES = """
capital city country nation state continent island town river ocean sea lake mountain desert planet star moon animal mammal
bird fish insect plant tree flower fruit vegetable element metal gas liquid mineral organ bone color colour language currency
symbol instrument sport holiday festival country's book novel play film movie opera song painting author writer poet
novelist playwright painter artist sculptor composer musician singer director founder creator inventor discoverer explorer
scientist physicist chemist biologist mathematician philosopher leader ruler emperor king queen president minister general
architect astronaut agency organization organisation company term word process date number
도시 나라 국가 대륙 섬 강 산 바다 호수 사막 행성 별 동물 새 식물 나무 꽃 과일 채소 원소 금속 기체 기관 색 색깔 언어 화폐 기호 악기 운동 명절
작가 시인 소설가 화가 작곡가 과학자 발명가 음식 작품 책 소설 곡 영화 왕 장군 대통령 수도 절 사찰 궁궐
"""
# Of these a name does not need to have any.
_TITLES = """
dr mr mrs ms sir lady lord prof professor saint st jr sr president king queen emperor general captain mount mt river lake
장군 대통령 대왕 왕 여왕 선생 선생님 박사 교수 씨 님
"""
_MONTHS = "january february march april may june july august september october november december".split()
UNITS = {  # by the form that stands for all
    "km": "kilometer kilometre km 킬로미터",
    "m": "meter metre m 미터",
    "cm": "centimeter centimetre cm 센티미터",
    "mm": "millimeter millimetre mm 밀리미터",
    "kg": "kilogram kilo kg 킬로그램",
    "g": "gram g 그램",
    "mi": "mile mi 마일",
    "ft": "foot feet ft 피트",
    "l": "liter litre l 리터",
    "ml": "milliliter millilitre ml 밀리리터",
    "h": "hour hr h 시간",
    "min": "minute min 분",
    "sec": "second sec 초",
    "day": "day 일",
    "week": "week 주",
    "month": "month 개월 달",
    "year": "year yr 년 세 살",
    "dollar": "dollar usd $ 달러",
    "euro": "euro eur € 유로",
    "won": "won krw ₩ 원",
    "%": "percent % 퍼센트 프로",
    "degree": "degree ° 도",
    "celsius": "celsius centigrade 섭씨",
    "fahrenheit": "fahrenheit 화씨",
}
_COUNTERS = (
    "개월|개|명|사람|마리|살|세|달|시간|시|분|초|권|장|번째|번|가지|자루|대|병|잔|송이|그루|방|년|일|주|킬로미터|미터|센티미터"
    "|킬로그램|그램|원|도|층|팀|학년|쪽|리터|가락|줄|칸|켤레|박|세기|종류|곳|군데|km|cm|kg|m|g"
)
COUNTERS = frozenset(
    "개 명 마리 가지 번 사람 대 권 자루 장 그루 송이 분 piece time".split()
)  # of no matter behind a number
_SAME = [  # irregular verbs, spellings and short forms
    *("write wrote written", "give gave given", "build built", "know knew known", "become became", "take took taken"),
    *("begin began begun", "grow grew grown", "eat ate eaten", "speak spoke spoken", "sing sang sung", "win won"),
    *("lead led", "hold held", "sell sold", "buy bought", "catch caught", "draw drew drawn", "fly flew flown"),
    *("rise rose risen", "freeze froze frozen", "wear wore worn", "drive drove driven", "break broke broken"),
    *("choose chose chosen", "lose lost", "run ran", "see saw seen", "teach taught", "tell told", "go went gone"),
    *("come came", "meet met", "pay paid", "sleep slept", "keep kept", "leave left", "send sent", "spend spent"),
    *("swim swam swum", "shine shone", "shoot shot", "bear bore born borne", "sink sank sunk", "fight fought"),
    *("find found", "make made", "think thought", "discover discovery", "invent invention", "man men", "woman women"),
    *("child children", "tooth teeth", "goose geese", "mouse mice", "leaf leaves", "wolf wolves", "knife knives"),
    *("aluminium aluminum", "grey gray", "autumn fall", "movie film", "sulphur sulfur", "tyre tire", "plough plow"),
    *("doughnut donut", "yoghurt yogurt", "kerb curb", "usa US america", "uk britain", "mom mum", "tv television"),
    *(
        "plane airplane aeroplane",
        "bike bicycle",
        "phone telephone",
        "fridge refrigerator",
        "vet veterinarian",
        "lab laboratory",
    ),
    *("hippo hippopotamus", "rhino rhinoceros", "gym gymnasium", "ad advertisement", "car automobile"),
    *("photo photograph", "maths math mathematics", "ok okay", "jr junior", "sr senior", "st saint", "mt mount"),
    *(
        "파랑 파란색 파랑색 푸른색",
        "빨강 빨간색 빨강색 붉은색",
        "노랑 노란색 노랑색",
        "초록 초록색 녹색",
        "하양 하얀색 흰색",
    ),
    *("검정 검은색 검정색", "주황 주황색", "보라 보라색", "분홍 분홍색", "대한민국 한국"),
]

_ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen""".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_VALUES = {word: i for i, word in enumerate(_ONES)} | {word: 10 * i for i, word in enumerate(_TENS, 2)}
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9}
_ORDINALS = """first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth
fifteenth sixteenth seventeenth eighteenth nineteenth twentieth""".split()
_NATIVE = {
    "하나": 1,
    "한": 1,
    "둘": 2,
    "두": 2,
    "셋": 3,
    "세": 3,
    "넷": 4,
    "네": 4,
    "다섯": 5,
    "여섯": 6,
    "일곱": 7,
    "여덟": 8,
}
_NATIVE |= {"아홉": 9}
_NATIVE_TENS = {"열": 10, "스물": 20, "스무": 20, "서른": 30, "마흔": 40, "쉰": 50, "예순": 60, "일흔": 70, "여든": 80}
_NATIVE_TENS |= {"아흔": 90}
_SINO = {digit: i for i, digit in enumerate("영일이삼사오육칠팔구")} | {"십": 10, "백": 100, "천": 1000}

_PARTICLES = """
은 는 이 가 을 를 의 에 에서 에게 께 께서 로 으로 와 과 랑 이랑 하고 도 만 까지 부터 처럼 보다 마다 조차 에는 에도 에서는 에서도 에게는 으로는 로는 과의 와의
들 이라고 라고 이라고도 라고도 이라는 라는 이란 란 이라 라 이나 이자 며 이며 고 이고 인 일 임
다 이다 입니다 이에요 예요 에요 이야 야 요 이요 죠 이죠 지요 이지요 네요 이네요 랍니다 이랍니다 인데 인데요
였다 이었다 였습니다 이었습니다 였어요 이었어요 였죠 이었죠 이거든요 이라고요 인가요 인가 인지 이었나요 였나요 일까요 입니까 이지만
"""


def _alternatives(names: Iterable[str]) -> str:
    return "|".join(sorted(names, key=len, reverse=True))


# --- one way to write dates, times and numbers --------------------------------------------------------------------

_MONTH = f"(?P<month>{_alternatives([*_MONTHS, *(m[:3] for m in _MONTHS), 'sept'])})" + r"\b\.?"
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
    re.compile(r"\b(?P<hour>\d{1,2})\s?(?P<half>[ap])\.?m\b\.?", re.I),
    re.compile(
        r"(?P<half>오전|오후|아침|저녁|새벽|밤|낮)? ?(?<!\d)(?P<hour>\d{1,2})시(?!간) ?(?:(?P<minute>\d{1,2})분|(?P<thirty>반))?"
    ),
]
_PAST = re.compile(r"\b(?:a )?(half|quarter|\d{1,2})(?: minutes)? (past|after|to|before) (\d{1,2})\b(?!:)", re.I)
_NO_NUMBER = re.compile(r"\b(?:no|any|every|some|this|that|each|the|which|another) one\b|\bone (?:of|another)\b", re.I)
_COUNT = _alternatives([*_VALUES, *_SCALES])
_ENGLISH = re.compile(
    rf"\b(?:{_COUNT}|\d+(?:\.\d+)?(?= (?:{'|'.join(_SCALES)})))(?:[ -]+(?:and )?(?:{_COUNT}))*\b", re.I
)
_DOZEN = re.compile(r"\b(?:(\d+)|a) dozen\b", re.I)
_KOREAN = re.compile(
    rf"(?<![가-힣\d])(?:(?=[가-힣])(?P<tens>{'|'.join(_NATIVE_TENS)})?(?P<ones>{_alternatives(_NATIVE)})?"
    rf"|(?P<sino>(?:[일이삼사오육칠팔구]?천)?(?:[일이삼사오육칠팔구]?백)?(?:[일이삼사오육칠팔구]?십)[일이삼사오육칠팔구]?|[삼사오육칠팔구백천]))"
    rf"(?= ?(?:{_COUNTERS}))"
)
_MYRIADS = re.compile(r"(?<![\d.])(?:\d[\d,]{0,15}(?:\.\d+)? ?[천백]?[조억만천백] ?){1,4}(?:\d{1,4}(?!\d))?")


def normal(text: str) -> str:
    """The text without markup and symbols, each date, time and number written one way."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).translate(_QUOTES)
    if text.isupper() and " " in text and len(text) > 20:
        text = text.lower()
    text = re.sub(r"[*`\"<>~^|\\]|(?<!\w)[_']|[_'](?!\w)|(?<![A-Za-z])#", "", text)
    text = re.sub(r"[^\w\s.,;:!?()%$°€₩/&'+#-]", " ", text)
    text = re.sub(r"°\s?([CF])\b", lambda m: " degrees Celsius" if m[1] == "C" else " degrees Fahrenheit", text)
    text = _numbers(text)
    if any(c.isdigit() for c in text):
        for pattern in _DATES:
            text = pattern.sub(_date, text)
        text = _PAST.sub(_past, text)
        for pattern in _TIMES:
            text = pattern.sub(_time, text)
    text = re.sub(r"\b(?:noon|midday)\b|정오", "time:12:00p", text)
    text = re.sub(r"\bmidnight\b|자정", "time:12:00a", text)
    if not text.isascii():
        text = _ATTACHED.sub("", text)
    text = _DOTTED.sub(_initials, text)
    text = re.sub(r"\b(Dr|Mr|Mrs|Ms|St|Jr|Sr|Mt|vs|approx|Prof)\.", r"\1", text)
    return re.sub(r"(?<=[^\W\d])-(?=[^\W\d])", "", text)


_QUOTES = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "−": "-", "–": " - ", "—": " - ", "·": ",", "、": ","})


# Initials and what follows them; but the end of a sentence in `It is vitamin C. It is in fruit`.
_STARTERS = "It|The|This|That|These|He|She|They|We|You|In|But|So|No|Wait|And|A|An|There|What|Its|His|Her|I"
_ATTACHED = re.compile(
    rf"(?<=[A-Za-z0-9%°])(?!(?:도|일|만|인)(?![가-힣]))(?:{_alternatives(_PARTICLES.split())})(?![가-힣])"
)
_DOTTED = re.compile(rf"\b(?:[A-Z]\. ?)+(?! ?(?:{_STARTERS})\b)(?=(?P<name>[A-Z][a-z])?)")


def _initials(match: re.Match[str]) -> str:
    """J. R. R. Tolkien, J.R.R. Tolkien: J R R Tolkien; U.S. law: US law."""
    letters = re.findall("[A-Z]", match.group())
    if match["name"] or len(letters) == 1:
        return " ".join(letters) + " " if match["name"] else match.group()
    return "".join(letters) + " "


def _numbers(text: str) -> str:
    if "one" in text:
        text = _NO_NUMBER.sub("someone", text)
    text = _ENGLISH.sub(_english, text)
    if "dozen" in text:
        text = _DOZEN.sub(lambda m: str(12 * int(m[1] or 1)), text)
    if not text.isascii():
        text = _KOREAN.sub(_korean, text)
        text = _MYRIADS.sub(_myriads, text)
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)


def _english(match: re.Match[str]) -> str:
    """twenty-four: 24; two hundred and five: 205; 5 million: 5000000."""
    total = part = 0.0
    for word in re.findall(rf"{_COUNT}|\d+(?:\.\d+)?", match.group().lower()):
        if word in _SCALES and word != "hundred":
            total, part = total + (part or 1) * _SCALES[word], 0
        elif word == "hundred":
            part = (part or 1) * 100
        else:
            part += _VALUES[word] if word in _VALUES else float(word)
    return f"{total + part:.12g}" if total + part < 1e12 else match.group()


def _korean(match: re.Match[str]) -> str:
    """스물네 (개): 24; 이백오십 (명): 250."""
    if match["sino"]:
        total = digit = 0
        for character in match["sino"]:
            if (value := _SINO[character]) < 10:
                digit = value
            else:
                total, digit = total + (digit or 1) * value, 0
        return str(total + digit)
    if not match.group():
        return ""
    return str(_NATIVE_TENS.get(match["tens"], 0) + _NATIVE.get(match["ones"], 0))


def _myriads(match: re.Match[str]) -> str:
    number = parse_number(match.group().strip())
    return f"{number.value} " if number is not None else match.group()


def _date(match: re.Match[str]) -> str:
    parts = match.groupdict()
    month = parts["month"].lower()
    number = (
        int(month) if month.isdigit() else 1 + next(i for i, name in enumerate(_MONTHS) if name.startswith(month[:3]))
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
    """A space, but before a Korean particle."""
    return "" if "가" <= match.string[match.end() : match.end() + 1] <= "힣" else " "


# --- words -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Word:
    """text: as written in the normal form. forms, weak: see above. name: begins with a capital. neutral: states
    nothing by itself. sound: how a word of one script would begin and go on in the other."""

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

    @property
    def korean(self) -> bool:
        return "가" <= self.text[0] <= "힣"


_TOKEN = re.compile(
    r"(?:date|time):[\d:ap-]+|(?<![\w.-])-?\d+(?:\.\d+)?(?:st|nd|rd|th)\b|(?<![\w.])-?\d+(?:\.\d+)?|\d+(?:\.\d+)?"
    r"|[가-힣]+|[A-Za-z]+\d\w*|[^\W\d가-힣]+(?:'[a-z]+)?[+#]*|[,%$€₩°&/]"
)


def words(text: str) -> tuple[Word, ...]:
    """The words of a text in normal form; `,`, `&` and `/` are words too."""
    return tuple(map(word, _TOKEN.findall(text.replace(";", ","))))


@lru_cache(maxsize=65_536)
def word(text: str) -> Word:
    if text[0] in "dt" and text[1:5] in ("ate:", "ime:"):
        return Word(text, frozenset(_date_forms(text) if text[0] == "d" else _time_forms(text)))
    if "가" <= text[0] <= "힣":
        return _korean_word(text)
    if text[0].isdigit() or text[0] == "-":
        return Word(
            text, frozenset({re.sub(r"(?<=\d)(?:st|nd|rd)$", "th", re.sub(r"(\.\d*?)0+$", r"\1", text).rstrip("."))})
        )
    return _english_word(text)


def _date_forms(text: str) -> set[str]:
    """A date states its parts: 20 July 1969 is also 20 July, July 1969 and 1969."""
    year, month, *day = text[5:].split("-")
    forms = {text, f"date:-{month}-{day[0]}"} if day else {text}
    return forms | ({f"date:{year}-{month}", year} if year else set())


def _time_forms(text: str) -> set[str]:
    """9:10 may be 9:10 a.m. or p.m., and 21:10 is the latter; but 9:10 is not 21:10."""
    hour, minute = int(text[5:].split(":")[0]), text[:-1].split(":")[2] if text[-1] in "ap" else text.split(":")[2]
    clock = f"{hour % 12}:{minute}"
    if text[-1] in "ap":
        return {clock + text[-1], f"{clock} maybe {text[-1]}"}
    if not 1 <= hour <= 12:
        return {clock + ("p" if hour >= 12 else "a"), text}
    return {clock, f"{clock} maybe a", f"{clock} maybe p"}


_GROUPS: dict[str, str] = {other: group.split()[0] for group in _SAME for other in group.split()}
_UNIT_OF = {name: unit for unit, names in UNITS.items() for name in names.split()}
_ORDINAL_OF = {name: f"{i}th" for i, name in enumerate(_ORDINALS, 1)}


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
    neutral = low in _NEUTRALS or lemma in _NEUTRALS
    if neutral and len(text) > 1 and text.isupper():  # WHO
        return Word(text, frozenset({text, lemma.upper()}), name=True)
    return Word(text, frozenset(forms), name=text[0].isupper(), neutral=neutral, sound=_latin_sound(low))


def _singular(low: str) -> str:
    if re.search(r"\w\wies$", low):
        return low[:-3] + "y"
    if re.search(r"(?:s|x|ch|sh)es$", low):
        return low[:-2]
    return low[:-1] if re.search(r"\w\w[^sui']s$", low) else low


# --- Korean ------------------------------------------------------------------------------------------------------

_PLACES = "산 강 시 도 군 섬 역 사 특별시 광역시 대왕 장군 대통령 왕 여왕 박사 선생 선생님 님 씨 색"
_STEM = re.compile(rf"(.+?)(?:{_alternatives(_PARTICLES.split())})")
_PLACE = re.compile(rf"(..+?)(?:{_alternatives(_PLACES.split())})")
# A leading single consonant closes the syllable before it: 끓습니다, 일어납니다, 일어난다, 만든.
_ENDINGS = """
습니다 ㅂ니다 는다 ㄴ다 다 는 은 ㄴ ㄹ 을 던 고 며 으며 면 으면 서 어서 아서 여서 지만 어 아 여 게 기 지 려고 도록 는데 ㄴ데
어요 아요 여요 요 었다 았다 였다 ㅆ다 었습니다 았습니다 였습니다 ㅆ습니다 었어요 았어요 였어요 ㅆ어요 습니까 ㅂ니까 었습니까 았습니까 였습니까 ㅆ습니까 었나요 았나요 였나요 ㅆ나요 ㄴ가요 는가요 은가요 던가요 ㄴ지 는지 은지 었던 았던 ㅆ던 ㄴ다고 는다고 죠 지요 네요 나요 ㄹ까요
"""
_CLOSING = str.maketrans("ㄴㄹㅂㅆ", "ᆫᆯᆸᆻ")
_ENDING = re.compile(
    f"(.+?)(?:{_alternatives(unicodedata.normalize('NFD', e.translate(_CLOSING)) for e in _ENDINGS.split())})"
)
# 해: 하; 돼: 되; 려: 리; 떠: 뜨; 와: 오; 워: 우; and the closing ㄹ of 만들다, which 만든 and 만듭니다 drop; and 시 of respect.
_CONTRACTED = [
    ("ᄒ\u1162", "ᄒ\u1161"),
    ("\u116b", "\u116c"),
    ("\u1167", "\u1175"),
    ("\u1165", "\u1173"),
    ("\u116a", "\u1169"),
    ("\u116f", "\u116e"),
]


def _korean_word(text: str) -> Word:
    stems = {text}
    for _ in range(2):  # 나라 + 들 + 은
        stems |= {m[1] for s in stems if (m := _STEM.fullmatch(s))}
    forms = {s for s in stems if len(s) > 1} | {text}
    forms |= {_GROUPS[s] for s in forms if s in _GROUPS}
    weak = (stems - forms) | {m[1] for s in forms if (m := _PLACE.fullmatch(s))}
    for verb in _verbs(text):
        forms.add(verb)
        if len(verb) > 3 and verb[-2] in "하되":
            weak.add(verb[:-2])
    forms |= {_UNIT_OF[s] for s in stems if s in _UNIT_OF}
    sound = min((s for s in forms if "가" <= s[0] <= "힣" and s[-1] != "~"), key=len)
    return Word(
        text,
        frozenset(forms),
        frozenset(weak),
        neutral=not _NEUTRALS.isdisjoint(forms | weak),
        sound=_korean_sound(sound),
    )


def _verbs(text: str) -> set[str]:
    """Stems that a verb may have, with `~` behind: 일어나~ for 일어납니다 and 일어난다; none where it ends as no verb does."""
    match = _ENDING.fullmatch(unicodedata.normalize("NFD", text))
    if not match:
        return set()
    stem = match[1].removesuffix("ᆯ")
    stems = {stem} | {stem.removesuffix(short) + long for short, long in _CONTRACTED if stem.endswith(short)}
    composed = {unicodedata.normalize("NFC", s) for s in stems}
    return {s.removesuffix("시") + "~" for s in composed if "가" <= s[-1] <= "힣" and s != "시"}


def ends_as_verb(word: Word) -> bool:
    """있습니다, 먹는다; not 파리입니다, 파리다, which name something."""
    copula = re.search(r"(?:입니다|이다|이에요|예요|였다|이었다|였습니다|이었습니다|이야|이요|이죠)$", word.text)
    return not copula and re.search(r"(?:[습합됩]니다|[가-힣]니다|다|요|죠)$", word.text) is not None


# --- sounds across the scripts -----------------------------------------------------------------------------------

_SOUNDS = [("ch", "s"), ("sh", "s"), ("ph", "p"), ("th", "t"), ("ng", "n"), ("x", "ks"), ("qu", "k")]
_LETTERS = str.maketrans("gcqbfvdlzj", "kkkppptrss", "hwy'")
_INITIALS = "k k n t t r m p p s s . s s s k t p .".split() + [""]
_VOWELS = "a a a a e e e e o o a o o u u e u u u u i".split()
_FINALS = ". k k ks n n n t r r m r r r p r m p ps s s n s s k t p .".split()


def _latin_sound(low: str) -> str:
    if not 3 <= len(low) <= 20 or not low.isalpha():
        return ""
    for letters, sound in _SOUNDS:
        low = low.replace(letters, sound)
    low = low.translate(_LETTERS)
    return _sound(low)


def _korean_sound(text: str) -> str:
    spelled = ""
    for character in text:
        if not "가" <= character <= "힣":
            return ""
        index = ord(character) - 0xAC00
        spelled += _INITIALS[index // 588].strip(".") + _VOWELS[index // 28 % 21] + _FINALS[index % 28].strip(".")
    return _sound(spelled)


def _sound(spelled: str) -> str:
    """The first vowel, then the consonants: `e:srn`. A name has two at least."""
    vowel = re.search("[aeiou]", spelled)
    first = "a" if spelled[:1] in tuple("aeiou") else ""
    consonants = re.sub(r"(.)\1+", r"\1", re.sub("[aeiou]", "", spelled))
    return f"{vowel.group()}{first}:{consonants}" if vowel and len(consonants) > 1 else ""


# --- the lists as sets -------------------------------------------------------------------------------------------


def _forms(text: str) -> frozenset[str]:
    listed = set(text.split())
    return frozenset(listed | {_GROUPS.get(w) or _singular(w) for w in listed if w.isascii()})


_NEUTRALS = _forms(_NEUTRAL.replace("well-known", "wellknown"))
CLASSES, TITLES = _forms(_CLASSES), _forms(_TITLES)
GEOGRAPHIC = frozenset("city river ocean desert mountain lake island sea".split())
