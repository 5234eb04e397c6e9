"""Word lists for grading texts, English and Korean. `~` ends the stem of a Korean verb. Imports no torch."""

from __future__ import annotations


def listed(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words that state nothing by themselves, so they make no other answer beside an answer.
FUNCTION = """
or either maybe perhaps possibly a an the this that these those such it its it's they them their there here he him
his she her we us our you your i my me of in on at by to for from with within into onto upon during near across
along among inside as than through over about and also too both all each every someone is are was were be been being
am do does did done has have had having can would shall should must let not no never cannot don't doesn't didn't
isn't aren't wasn't weren't can't won't so then thus hence therefore now today currently really just only simply
very quite rather absolutely most more much many mostly mainly usually often generally commonly typically actually
indeed certainly definitely well probably approximately around roughly exactly namely officially traditionally
popularly famously widely which who whom whose what when where why how because if while again answer correct right
sure note okay ok yes please final checking name
"""
NEUTRAL = """
called known named considered referred located situated found stand stands stood lie lies belong belongs mean means
will become becomes make makes made making use uses used using get gets got give gives gave given go goes went take
takes took taken happen happens occur occurs contain contains produce produces create creates help helps allow need
needs include exist cause causes begin begins end ends total equal equals own one ones thing things kind type sort
sometimes example weigh weighs cost costs measure measures last lasts reach reaches run runs flow flows fairly
pretty previous earlier initial think believe guess say said see know confident certain question check checked
confirm conclusion fact still further review careful consideration famous large largest big biggest great main major
well-known modern beautiful year years old long high time place world way part person people man woman celsius
네 예 아니요 아니오 아뇨 다시 올바른 그 그는 그가 그의 그것 이것 저것 그건 이건 것 것은 것이 것을 것으로 것입니다
것이다 거예요 거 수 수가 저 저는 제 제가 나 나는 내 내가 우리 우리나라 당신 여기 거기 이 그리고 그래서 따라서
그러므로 즉 바로 또한 약 총 모두 가장 매년 주로 보통 대표 대표적 일반적 현재 오늘날 정답 답 질문 답변 확인 결과 결론
때문 위해 위하여 통해 통하여 따라 의해 중 중에서 세계 사람 이름 정도 생각 물론 아마 아마도 알기로는 알기로 큰 많은
전통 매우 아주 정말 겁 전체 각각 각 섭씨
있~ 없는~ 이~ 되~ 하~ 알려지~ 알려~ 불리~ 부르~ 말하~ 뜻하~ 위치하~ 생각하~ 속하~ 유명하~ 가능하~ 보~ 여기~ 여겨지~
나타내~ 의미하~ 확인하~ 검토하~ 맞~ 같~ 대표하~ 해당하~ 아시~ 아니~ 않~ 없~ 못하~
"""
# Classes of things that an answer may name: `the city of Paris`, `the planet Mars`, `Homer is the author of it`.
CLASSES = """
capital city country nation state continent island town river ocean sea lake mountain desert planet star moon animal
mammal bird fish insect plant tree flower fruit vegetable element metal gas liquid mineral organ bone color colour
language currency symbol instrument sport holiday festival book novel play film movie opera song painting author
writer poet novelist playwright painter artist sculptor composer musician singer director founder creator inventor
discoverer explorer scientist physicist chemist biologist mathematician philosopher leader ruler emperor king queen
president minister general architect astronaut agency organization organisation company term word process date
number
도시 나라 국가 대륙 섬 강 산 바다 호수 사막 행성 별 동물 새 식물 나무 꽃 과일 채소 원소 금속 기체 기관 색 색깔 언어
화폐 기호 악기 운동 명절 작가 시인 소설가 화가 작곡가 과학자 발명가 음식 작품 책 소설 곡 영화 왕 장군 대통령 수도 절
사찰 궁궐
"""
# Optional parts of a name; PLACES are optional at its end.
TITLES = """
dr mr mrs ms sir lady lord prof professor saint st jr sr president king queen emperor general captain mount mt river
lake
장군 대통령 대왕 왕 여왕 선생 선생님 박사 교수 씨 님
"""
PLACES = listed("city river ocean desert mountain lake island sea")
# 이순신 장군 and 이순신, 에베레스트산 and 에베레스트.
SUFFIXES = "산 강 시 도 군 섬 역 사 특별시 광역시 대왕 장군 대통령 왕 여왕 박사 선생 선생님 님 씨 색"

# Irregular verbs and plurals, spellings, short forms, Korean colours. The first word of a group represents it.
SAME = """
write wrote written; give gave given; build built; know knew known; become became; take took taken
begin began begun; grow grew grown; eat ate eaten; speak spoke spoken; sing sang sung; win won; lead led; hold held
sell sold; buy bought; catch caught; draw drew drawn; fly flew flown; rise rose risen; freeze froze frozen
wear wore worn; drive drove driven; break broke broken; choose chose chosen; lose lost; run ran; see saw seen
teach taught; tell told; go went gone; come came; meet met; pay paid; sleep slept; keep kept; leave left; send sent
spend spent; swim swam swum; shine shone; shoot shot; bear bore born borne; sink sank sunk; fight fought
die died dying; hear heard; stand stood; throw threw thrown; hang hung; steal stole stolen; strike struck
bite bit bitten
blow blew blown; hide hid hidden; ride rode ridden; ring rang rung; feed fed; dig dug; spin spun; bring brought
wake woke woken; shake shook shaken; tear tore torn; forget forgot forgotten; lay laid; lend lent; seek sought
bind bound
find found; make made; think thought; discover discovery; invent invention; man men; woman women; child children
tooth teeth; goose geese; mouse mice; leaf leaves; wolf wolves; knife knives; aluminium aluminum; grey gray
autumn fall fell fallen; movie film; sulphur sulfur; tyre tire; plough plow; doughnut donut; yoghurt yogurt; kerb curb
usa US america; uk britain; mom mum; tv television; plane airplane aeroplane; bike bicycle; phone telephone
fridge refrigerator; vet veterinarian; lab laboratory; hippo hippopotamus; rhino rhinoceros; gym gymnasium
ad advertisement; car automobile; photo photograph; maths math mathematics; jr junior; sr senior; st saint
mt mount; 대한민국 한국; 파랑 파란색 파랑색 푸른색; 빨강 빨간색 빨강색 붉은색; 노랑 노란색 노랑색; 초록 초록색 녹색
하양 하얀색 흰색; 검정 검은색 검정색; 주황 주황색; 보라 보라색; 분홍 분홍색
"""
UNITS = {  # representative form: other forms
    "km": "kilometer kilometre 킬로미터",
    "m": "meter metre 미터",
    "cm": "centimeter centimetre 센티미터",
    "mm": "millimeter millimetre 밀리미터",
    "kg": "kilogram kilo 킬로그램",
    "g": "gram 그램",
    "mi": "mile 마일",
    "ft": "foot feet 피트",
    "l": "liter litre 리터",
    "ml": "milliliter millilitre 밀리리터",
    "h": "hour hr 시간",
    "min": "minute 분",
    "sec": "second 초",
    "day": "일",
    "week": "주",
    "month": "개월 달",
    "year": "yr 년 세 살",
    "dollar": "usd $ 달러",
    "euro": "eur € 유로",
    "won": "krw ₩ 원",
    "%": "percent 퍼센트 프로",
    "degree": "° 도",
    "celsius": "centigrade 섭씨",
    "fahrenheit": "화씨",
}
# Ignored after a number.
COUNTERS = listed("개 명 마리 가지 번 사람 대 권 자루 장 그루 송이 분 piece time")
# Korean number words count as numbers only before these.
COUNTED = (
    "개월 개 명 사람 마리 살 세 달 시간 시 분 초 권 장 번째 번 가지 자루 대 병 잔 송이 그루 방 년 일 주"
    " 킬로미터 미터 센티미터 킬로그램 그램 원 도 층 팀 학년 쪽 리터 가락 줄 칸 켤레 박 세기 종류 곳 군데 km cm kg m g"
)

MONTHS = "january february march april may june july august september october november december".split()  # noqa: SIM905
NUMBERS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen
"""
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9}
ORDINALS = """
first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth
sixteenth seventeenth eighteenth nineteenth twentieth
"""
NATIVE = {
    "한": 1,
    "두": 2,
    "세": 3,
    "네": 4,
    "하나": 1,
    "둘": 2,
    "셋": 3,
    "넷": 4,
    "다섯": 5,
    "여섯": 6,
    "일곱": 7,
    "여덟": 8,
}
NATIVE |= {"아홉": 9}
NATIVE_TENS = {"열": 10, "스물": 20, "스무": 20, "서른": 30, "마흔": 40, "쉰": 50, "예순": 60, "일흔": 70, "여든": 80}
NATIVE_TENS |= {"아흔": 90}
SINO = {digit: i for i, digit in enumerate("영일이삼사오육칠팔구")} | {"십": 10, "백": 100, "천": 1000}

# Endings of Korean nouns: particles and the copula.
PARTICLES = """
은 는 이 가 을 를 의 에 에서 에게 께 께서 로 으로 와 과 랑 이랑 하고 도 만 까지 부터 처럼 보다 마다 조차 에는 에도
에서는 에서도 에게는 으로는 로는 과의 와의 들 이라고 라고 이라고도 라고도 이라는 라는 이란 란 이라 라 이나 이자 며
이며 고 이고 인 일 임 다 이다 입니다 이에요 예요 에요 이야 야 요 이요 죠 이죠 지요 이지요 네요 이네요 랍니다
이랍니다 인데 인데요 였다 이었다 였습니다 이었습니다 였어요 이었어요 였죠 이었죠 이거든요 이라고요 이십니다 이세요
인가요 인가 인지 이었나요 였나요 일까요 입니까 이지만
"""
# Endings of Korean verbs. A leading single consonant closes the syllable before it: 일어납니다, 일어난다, 만든, 했다.
ENDINGS = """
습니다 ㅂ니다 는다 ㄴ다 다 는 은 ㄴ ㄹ 을 던 고 며 으며 면 으면 서 어서 아서 여서 지만 어 아 여 게 기 지 려고 도록
는데 ㄴ데 어요 아요 여요 요 었다 았다 였다 ㅆ다 었습니다 았습니다 였습니다 ㅆ습니다 었어요 았어요 였어요 ㅆ어요
습니까 ㅂ니까 었습니까 았습니까 였습니까 ㅆ습니까 었나요 았나요 였나요 ㅆ나요 ㄴ가요 는가요 은가요 던가요 ㄴ지 는지
은지 었던 았던 ㅆ던 ㄴ다고 는다고 죠 지요 네요 나요 ㄹ까요
"""

# Words by their place in an English clause.
ARTICLES = listed("the a an")
COPULAS = listed("is are was were be it's that's")
PRONOUNS = listed("it it's that that's he she they this these which")
JOINS = listed(", and & 그리고 및")
LINKS = listed("is was are were by in on at called of named as be from")  # between `painted` and the painter
NAME_PARTICLES = listed("van von de da di la le del der den al bin")
PREPOSITIONS = listed(
    """in on at by from of for during near until within around after before under due thanks making reaching covering
    located lasting high just"""
)
REASONS = listed("because since when while")
RELATIVES = listed("which who whose where that")
OTHER_ANSWER = listed("now instead actually answer right correct")  # in a detail: the answer is something else
