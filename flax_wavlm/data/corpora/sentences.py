"""The grammars of the synthetic corpus: what is said, in each language.

Source: the English grammar is that of the GRID corpus (Cooke, Barker, Cunningham and Shao, "An audio-visual
corpus for speech perception and automatic speech recognition", JASA 120(5), 2006), with a second digit in the
place of its letter. The others were written for this package.
"""

from __future__ import annotations

from flax_wavlm.data.corpora.grammar import Grammar, Slot, Template


def _slot(choices: str) -> Slot:
    return tuple(choices.split(", "))


# --- English: the commands of the demo ----------------------------------------------------------------------

_DIGITS = _slot("zero, one, two, three, four, five, six, seven, eight, nine")
ENGLISH = Grammar(
    voice="en-us",
    templates=(
        (
            ("bin", "lay", "place", "set"),
            ("blue", "green", "red", "white"),
            ("at", "by", "in", "with"),
            _DIGITS,
            _DIGITS,
            ("again", "now", "please", "soon"),
        ),
    ),
)


# --- German: umlauts, ß, cases, and compounds ---------------------------------------------------------------

_PEOPLE = _slot(
    "der Bäcker, die Ärztin, mein Bruder, unsere Tante, der kleine Junge, das Mädchen, eine Schülerin, "
    "der König, die Köchin, ein Gärtner, der Förster, die Großmutter, unser Nachbar, deine Schwester, "
    "der Müller, die Lehrerin"
)
_DOES = _slot(
    "sieht, kauft, sucht, findet, holt, trägt, zeichnet, wäscht, verkauft, nimmt, bringt, vergisst, "
    "putzt, versteckt"
)
_THINGS = _slot(
    "den grünen Apfel, die süße Birne, das alte Fahrrad, einen großen Löffel, die weiße Schüssel, "
    "das dünne Buch, den schweren Schlüssel, ein schönes Bild, die frischen Brötchen, den blauen Mantel, "
    "die kurze Leiter, das neue Messer, einen warmen Pullover, die gelbe Mütze, den langen Strick, "
    "das runde Fass, die grünen Strümpfe, einen heißen Tee"
)
_WHEN = _slot(
    "heute, morgen, am Montag, jeden Dienstag, am Abend, im Frühling, nächste Woche, schon wieder, "
    "im März, nach dem Frühstück"
)
_WHERE = _slot(
    "hinter dem Haus, auf der Brücke, neben der Kirche, unter dem Dach, vor der Tür, im Hof, "
    "zwischen den Bäumen, über dem Fluss, in der Küche, im Garten, an der Straße, bei der Hütte"
)
_IS_THERE = _slot("steht, liegt, wartet, schläft, sitzt, bleibt, spielt, singt")
_BEINGS = _slot(
    "ein müder Hund, eine schwarze Katze, der dicke Bär, ein fröhliches Kind, eine fremde Frau, "
    "der graue Esel, ein junges Pferd, die weiße Gans, ein stiller Mönch, mein jüngster Sohn, "
    "das kranke Kalb, ein wütender Löwe, eine kluge Eule, der fleißige Schüler"
)
_WANTS = _slot("wir möchten, ich muss, sie können, er will, du sollst, ihr dürft, man darf")
_TO_DO = _slot(
    "kaufen, suchen, probieren, holen, bezahlen, mitnehmen, bestellen, verschenken, zählen, füllen, "
    "zurückgeben"
)
_COSTS = _slot("kostet, kostete, kostet nur")
_NUMBERS = _slot(
    "zwei, drei, vier, fünf, sechs, sieben, acht, neun, zehn, elf, zwölf, dreizehn, vierzehn, sechzehn, "
    "zwanzig, dreißig, vierzig, fünfzig, siebzig, achtzig, hundert"
)
_FIRST = _slot(
    "Apfel, Kirsch, Pflaumen, Mandel, Hühner, Zwiebel, Möhren, Butter, Schoko, Honig, Rüben, Birnen"
)
_SECOND = _slot("kuchen, saft, salat, teller, topf, löffel, korb, becher")  # all masculine
# One compound in four is kept for dev and test. Each of its parts is in others, so that it can be spelt.
_COMPOUNDS, _NEW_COMPOUNDS = (
    tuple(
        first + second
        for i, first in enumerate(_FIRST)
        for j, second in enumerate(_SECOND)
        if ((i + j) % 4 == 0) is new
    )
    for new in (False, True)
)


def _about(compounds: Slot) -> tuple[Template, ...]:
    return (
        (_WANTS, ("heute", "morgen"), ("den",), compounds, _TO_DO),
        (("der",), compounds, _COSTS, _NUMBERS, ("Euro",)),
    )


GERMAN = Grammar(
    voice="de",
    templates=(
        (_PEOPLE, _DOES, ("oft", "immer", "plötzlich"), _THINGS),
        (_WHEN, _IS_THERE, _WHERE, _BEINGS),
        *_about(_COMPOUNDS),
    ),
    unseen=_about(_NEW_COMPOUNDS),
)


# --- Mandarin: no blanks, tones, and characters that only their neighbours tell apart -----------------------

_TIMES = _slot("今天, 明天, 昨天, 早上, 晚上, 下午, 春天, 周末")
_PERSONS = _slot("我, 你, 他, 妈妈, 爸爸, 老师, 学生, 医生, 朋友, 哥哥, 姐姐, 弟弟, 妹妹, 爷爷, 奶奶, 孩子")
_BUYS = _slot("买了, 卖了, 看见, 需要, 找到, 借走")
_COUNTS = _slot("两, 三, 四, 五, 六, 七, 八, 九, 十")
_GOODS = _slot("本书, 张纸, 条鱼, 把刀, 杯水, 盆花, 辆车, 块糖, 个苹果, 双鞋, 封信, 匹马, 碗饭, 支笔")
_PLACES = _slot("学校里, 桌子上, 河边, 山上, 门口, 公园里, 床下, 城外")
_CITIES = _slot("北京, 上海, 南京, 广州, 香港, 法国, 德国, 云南")
_AIMS = _slot("旅游, 工作, 读书, 唱歌, 跳舞, 打球, 休息, 吃面")
_SUBJECTS = _slot("天空, 西瓜, 月亮, 太阳, 大象, 狗, 冰, 雪, 草, 汤")
_VERY = _slot("很, 非常, 特别, 真, 不太")
_QUALITIES = _slot("蓝, 甜, 红, 白, 高, 冷, 热, 漂亮, 安静, 黑, 酸, 干净, 重要")

MANDARIN = Grammar(
    voice="cmn",
    templates=(
        (_PERSONS, _BUYS, _COUNTS[:4], _GOODS),
        (_PLACES, ("有", "没有"), _COUNTS, _GOODS),
        (_PERSONS, ("去",), _CITIES, _AIMS),
        (_TIMES, _PERSONS, _AIMS),
        (_SUBJECTS, _VERY, _QUALITIES),
        (_PERSONS, _VERY, _QUALITIES),
    ),
    blank="",
    end="。",
    word_times=False,
)

GRAMMARS = {"en": ENGLISH, "de": GERMAN, "cmn": MANDARIN}
