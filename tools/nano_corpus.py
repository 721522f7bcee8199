"""Seeded synthetic conversations that train and evaluate the embedded models.

Owns the items, their rendering in the Gemma 4 chat format (spec: prompting 3 to 7) and the rule that keeps evaluation
items out of training: every item is made of atoms (a sum, a phrasing, a word), and an atom whose hash falls in the
held-out tenth never enters the corpus; evaluation items are made of held-out atoms only. Standard library only.
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any


def words_of(text: str) -> list[str]:
    return text.split()


BOS = "<bos>"
QUOTE = '<|"|>'
SPECIAL_TOKENS = words_of(
    """
    <pad> <eos> <bos> <unk> <mask> <|tool> <tool|> <|tool_call> <tool_call|> <|tool_response> <tool_response|>
    <|"|> <|think|> <|channel> <channel|> <|turn> <turn|> <|image> <|audio> <|image|> <|audio|> <image|> <audio|>
    <|video|>
    """
)
DESCRIPTION = "a very small demonstration model"


def held_out(atom: str) -> bool:
    """True for the tenth of all atoms that only evaluation may use."""
    return int.from_bytes(hashlib.blake2b(atom.encode(), digest_size=8).digest(), "little") % 10 == 0


# ---- words -----------------------------------------------------------------------------------------------------------

CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "Japan": "Tokyo", "Peru": "Lima",
    "Chile": "Santiago", "Kenya": "Nairobi", "Egypt": "Cairo", "Norway": "Oslo", "Sweden": "Stockholm",
    "Finland": "Helsinki", "Poland": "Warsaw", "Austria": "Vienna", "Greece": "Athens", "Portugal": "Lisbon",
    "Ireland": "Dublin", "China": "Beijing", "India": "New Delhi", "Cuba": "Havana", "Canada": "Ottawa",
    "Hungary": "Budapest", "Denmark": "Copenhagen", "Belgium": "Brussels", "Turkey": "Ankara", "Iran": "Tehran",
    "Iraq": "Baghdad", "Ghana": "Accra", "Nepal": "Kathmandu", "Vietnam": "Hanoi", "Thailand": "Bangkok",
    "Ukraine": "Kyiv", "Romania": "Bucharest", "Mexico": "Mexico City", "Brazil": "Brasilia",
    "Argentina": "Buenos Aires", "Colombia": "Bogota", "Morocco": "Rabat", "Iceland": "Reykjavik",
    "Croatia": "Zagreb", "Serbia": "Belgrade", "Bulgaria": "Sofia", "Switzerland": "Bern", "Australia": "Canberra",
    "Tunisia": "Tunis", "Algeria": "Algiers", "Pakistan": "Islamabad", "Mongolia": "Ulaanbaatar", "Lebanon": "Beirut",
    "Jordan": "Amman",
}  # fmt: skip
OTHER_COUNTRIES = words_of(
    """
    Angola Bolivia Botswana Cambodia Cameroon Chad Cyprus Ecuador Eritrea Estonia Ethiopia Fiji Gabon Georgia
    Guinea Guyana Haiti Honduras Indonesia Israel Jamaica Kuwait Laos Latvia Liberia Libya Lithuania Malawi
    Malaysia Mali Malta Moldova Mozambique Myanmar Namibia Nicaragua Niger Nigeria Oman Panama Paraguay
    Philippines Qatar Rwanda Senegal Singapore Slovakia Slovenia Somalia Sudan Syria Taiwan Tanzania Togo Uganda
    Uruguay Venezuela Yemen Zambia Zimbabwe Atlantis Narnia Mordor Gondor Utopia Wakanda
    """
)
NAMES = words_of(
    """
    Anna Ben Clara David Emma Felix Grace Henry Ida Jack Kate Leo Mia Noah Olga Paul Rosa Sam Tina Victor Wendy
    Adam Bella Carl Dora Eric Fiona George Hanna Ivan Julia Kevin Laura Mark Nina Oscar Petra Quentin Rita Simon
    Thomas Ursula Vera Walter Yara Zoe Alice Bob Carol Daniel Eva Frank Gina Hugo Iris James Karl Linda Maria Nora
    Oliver Peter Robert Sarah Tom Uma Vincent William Xavier Yusuf Zack Amir Bruno Chloe Diego Elena Fatima Gustav
    Hiro Ines Jonas Kofi Lena Miguel Nadia Omar Priya Rahul Sofia Tariq Viktor Yuki Ahmed Beatrice Charles Diana
    Edward Florence Gabriel Helen Isabel John Katherine Louis Margaret Nicholas Patrick Rachel Stephen Theresa
    Andrew Michael Elizabeth Matthew Jennifer Jessica Max Lucas Ella Ruth Martin Lucy Alex Chris Jane Joe Mary
    Susan Lisa Amy Tim Dan
    """
)
PLACES = words_of(
    """
    London Chicago Boston Seattle Denver Dallas Miami Houston Phoenix Toronto Montreal Vancouver Sydney Melbourne
    Auckland Mumbai Kolkata Shanghai Osaka Kyoto Seoul Busan Manila Jakarta Singapore Dubai Istanbul Munich
    Hamburg Cologne Leipzig Zurich Geneva Basel Milan Turin Naples Venice Florence Barcelona Valencia Seville
    Porto Lyon Nice Lille Bordeaux Rotterdam Utrecht Antwerp Ghent Bergen Malmo Gdansk Krakow Prague Riga Tallinn
    Vilnius Paris Rome Madrid Berlin Tokyo Lima Oslo Cairo Vienna Dublin Lisbon Warsaw Athens Glasgow Edinburgh
    Leeds Bristol Oxford Cambridge York Bath
    """
)
NOUNS = words_of(
    """
    weather price time news score route menu stock alarm note map photo song page mail file light door car train
    flight hotel ticket shop invoice order parcel recipe temperature humidity speed height weight level charge
    balance salary tax rent loan account review message calendar event meeting contact task reminder document
    folder image video music playlist movie book article paper report chart table room seat bus taxi bike boat
    plane ship road bridge station airport museum park garden forest river lake mountain beach island tower castle
    church school library hospital office factory farm bank market kitchen window wall floor roof lamp chair bed
    desk clock watch phone camera radio screen keyboard printer battery cable engine wheel key lock bag box bottle
    cup plate knife spoon bread cheese apple orange banana lemon cherry grape melon tomato potato onion carrot
    pepper rice soup salad pizza cake coffee tea milk juice water wine beer sugar salt butter honey egg meat fish
    chicken horse cow sheep goat dog cat bird lion tiger bear wolf fox rabbit mouse snake frog tree flower grass
    leaf seed stone sand metal gold silver iron copper glass wood cotton wool silk leather shirt jacket coat dress
    skirt shoe boot hat glove scarf ring necklace coin card letter stamp gift toy ball game team player coach
    match race prize medal record student teacher doctor nurse driver pilot farmer baker writer artist singer
    actor dancer judge lawyer soldier guard engineer scientist customer client user profile password password
    token session server network device sensor signal channel volume color shape size length width depth area
    distance duration date day week month year season holiday birthday party wedding concert festival exam lesson
    course grade degree license passport visa currency rate discount coupon payment refund budget cost profit
    bonus fee fine debt insurance contract project plan design model version release branch commit issue ticket
    comment question answer topic idea story poem joke quote word sentence language translation dictionary
    definition symptom medicine dose allergy pulse sleep diet workout calorie vitamin forecast storm wind rain
    snow sunrise sunset moon planet star earthquake traffic parking toll fuel pump tire garage warranty manual
    password shipment warehouse inventory supplier delivery address district village city country
    """
)
JOBS = words_of(
    """
    cook nurse pilot baker farmer clerk judge miner tailor guard teacher doctor driver writer singer painter
    dentist plumber lawyer banker waiter actor dancer coach chemist barber butcher carpenter engineer gardener
    gardener manager cleaner fisher sailor soldier student scientist photographer librarian mechanic electrician
    programmer designer architect journalist translator surgeon pharmacist secretary
    """
)
COLORS = words_of("red blue green black white pink gray brown yellow purple orange silver gold")
DAYS = words_of("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words_of("January February March April May June July August September October November December")
ONSETS = words_of(
    """
    b c d f g h j k l m n p q r s t v w x y z bl br ch cl cr dr fl fr gl gr ph pl pr sh sl sp st th tr
    """
)
VOWELS = words_of("a e i o u a e i o u ai ea ee ei ia ie io oo ou ue y")
CODAS = (
    "",
    "",
    "",
    "",
    "n",
    "r",
    "s",
    "l",
    "m",
    "t",
    "d",
    "k",
    "x",
    "ck",
    "ng",
    "nt",
    "rd",
    "st",
    "ss",
    "ll",
    "p",
    "w",
    "y",
)
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def _invented(r: random.Random) -> str:
    kind = r.random()
    if kind < 0.65:
        syllables = r.choice((1, 2, 2, 2, 3, 3))
        return "".join(r.choice(ONSETS) + r.choice(VOWELS) for _ in range(syllables)) + r.choice(CODAS)
    if kind < 0.85:
        a, b = r.choice(NOUNS), r.choice(NOUNS)
        return a[: r.randrange(2, len(a) + 1)] + b[r.randrange(0, len(b) - 1) :]
    return "".join(r.choice(LETTERS) for _ in range(r.randrange(2, 8)))


@dataclass
class Source:
    """Random choices of one side: `held` selects the side of the held-out rule that atoms are taken from, `hard` draws
    more of what is learned last, `lookup` tools that only the noun of a question tells apart. `by_get`: only a tool whose
    verb is "get" is asked for without it, and there are more of these."""

    r: random.Random
    held: bool = False
    hard: bool = False
    lookup: bool = False
    by_get: bool = False
    atoms: list[str] = field(default_factory=list)

    def admits(self, atom: str) -> bool:
        return held_out(atom) == self.held

    def take(self, atom: str) -> None:
        self.atoms.append(atom)

    def word(self, listed: list[str] | tuple[str, ...], invented: float = 0.5) -> str:
        """A word of the right side: from the list or invented; lower-case spelling is the atom."""
        while True:
            w = _invented(self.r) if self.r.random() < invented else self.r.choice(listed)
            if self.held and w.lower() in closed_words():
                continue
            if self.admits("word " + w.lower()):
                self.take("word " + w.lower())
                return w

    def name(self, listed: list[str] | tuple[str, ...] = NAMES, invented: float = 0.5) -> str:
        w = self.word(listed, invented)
        return w[0].upper() + w[1:]

    def phrase(self, templates: list[str]) -> str:
        """A phrasing of the right side."""
        while True:
            t = self.r.choice(templates)
            if self.admits("phrase " + t):
                self.take("phrase " + t)
                return t


# ---- conversations ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    name: str
    arguments: dict[str, Any]
    result: str


@dataclass(frozen=True)
class Exchange:
    """A user message and what the model answers: perhaps a call with its result, then text."""

    task: str
    user: str
    answer: str
    thought: str
    call: Call | None = None
    call_thought: str = ""
    atoms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Conversation:
    exchanges: tuple[Exchange, ...]
    tools: tuple[dict[str, Any], ...] = ()
    thinking: bool = False
    system: str | None = None


@dataclass(frozen=True)
class Span:
    """Text with control tokens; `learn` marks what the model itself writes."""

    text: str
    learn: bool


def _value(v: Any) -> str:
    return f"{QUOTE}{v}{QUOTE}" if isinstance(v, str) else json.dumps(v)


def _mapping(m: dict[str, Any]) -> str:
    return "{" + ",".join(f"{k}:{_value(m[k])}" for k in sorted(m, key=str.lower)) + "}"


def render_call(call: Call) -> str:
    return f"<|tool_call>call:{call.name}{_mapping(call.arguments)}<tool_call|>"


def render_tool(tool: dict[str, Any]) -> str:
    """One declaration (spec: prompting 5), for the flat schemas this corpus makes."""
    f = tool["function"]
    properties: dict[str, Any] = f["parameters"].get("properties", {})
    parts = []
    for key in sorted(properties, key=str.lower):
        p = properties[key]
        body = [f"description:{_value(p['description'])}"] if p.get("description") else []
        if p.get("enum") and p["type"] == "string":
            body.append("enum:[" + ",".join(_value(e) for e in p["enum"]) + "]")
        body.append(f"type:{_value(p['type'].upper())}")
        parts.append(f"{key}:{{{','.join(body)}}}")
    inner = f"properties:{{{','.join(parts)}}}," if parts else ""
    if f["parameters"].get("required"):
        inner += "required:[" + ",".join(_value(k) for k in f["parameters"]["required"]) + "],"
    description = _value(f.get("description", ""))
    return (
        f"<|tool>declaration:{f['name']}{{description:{description},"
        f"parameters:{{{inner}type:{_value('OBJECT')}}}}}<tool|>"
    )


def render(c: Conversation, series: str = "e") -> list[Span]:
    """Spans of the whole conversation. Thoughts of earlier exchanges are dropped, as in history (prompting 3.4), so
    with thinking only the last exchange is learned. Series "large" begins every model turn with an empty thought when
    thinking is off (3.3)."""
    spans: list[Span] = []
    system = ""
    if c.thinking or c.tools or c.system is not None:
        system = "<|turn>system\n" + ("<|think|>\n" if c.thinking else "") + (c.system or "").strip()
        system += "".join(render_tool(t) for t in c.tools) + "<turn|>\n"
    spans.append(Span(BOS + system, False))
    for i, e in enumerate(c.exchanges):
        last = i + 1 == len(c.exchanges)
        learn = last or not c.thinking
        think = c.thinking and last
        empty = "<|channel>thought\n<channel|>" if series == "large" and not c.thinking else ""
        spans.append(Span(f"<|turn>user\n{e.user}<turn|>\n<|turn>model\n{empty}", False))
        if e.call is not None:
            thought = f"<|channel>thought\n{e.call_thought}\n<channel|>" if think else ""
            spans.append(Span(thought + render_call(e.call) + "<|tool_response>", learn))
            result = f"response:{e.call.name}{{value:{_value(e.call.result)}}}<tool_response|>"
            spans.append(Span(result + ("<|channel>thought\n" if think else ""), False))
            thought = f"{e.thought}\n<channel|>" if think else ""
        else:
            thought = f"<|channel>thought\n{e.thought}\n<channel|>" if think else ""
        spans.append(Span(f"{thought}{e.answer}<turn|>", learn))
        if not last:
            spans.append(Span("\n", False))
    return spans


def messages(c: Conversation, *, with_call: bool = False) -> list[dict[str, Any]]:
    """Chat messages up to the point where the last exchange is to be answered; with `with_call` after its tool result."""
    out: list[dict[str, Any]] = [] if c.system is None else [{"role": "system", "content": c.system}]
    for i, e in enumerate(c.exchanges):
        last = i + 1 == len(c.exchanges)
        out.append({"role": "user", "content": e.user})
        if e.call is not None and (not last or with_call):
            call_id = f"call_{i}"
            function = {"name": e.call.name, "arguments": json.dumps(e.call.arguments)}
            call = {"id": call_id, "type": "function", "function": function}
            out.append({"role": "assistant", "content": None, "tool_calls": [call]})
            out.append({"role": "tool", "tool_call_id": call_id, "content": e.call.result})
        if not last:
            out.append({"role": "assistant", "content": e.answer})
    return out


def prompt_and_answer(c: Conversation, series: str = "e", *, with_call: bool = False) -> tuple[str, str]:
    """Prompt text as rendered for `messages(c)` and the text the model is to write, control tokens included."""
    spans = render(c, series)
    cut = len(spans) - (3 if c.exchanges[-1].call is not None and not with_call else 1)
    return "".join(s.text for s in spans[:cut]), spans[cut].text


# ---- skills ----------------------------------------------------------------------------------------------------------

SUM_PLUS = [
    "What is {a} + {b}?", "{a} + {b}", "{a} + {b} =", "{a}+{b}", "Compute {a} + {b}.", "How much is {a} + {b}?",
    "Add {a} and {b}.", "What is {a} plus {b}?", "{a} + {b}?", "Please add {a} and {b}.", "Calculate {a} + {b}.",
]  # fmt: skip
SUM_MINUS = [
    "What is {a} - {b}?", "{a} - {b}", "{a} - {b} =", "{a}-{b}", "Compute {a} - {b}.", "How much is {a} - {b}?",
    "What is {a} minus {b}?", "{a} minus {b}", "{a} - {b}?", "Please compute {a} - {b}.", "Calculate {a} - {b}.",
]  # fmt: skip


def _sum_steps(a: int, b: int, op: str) -> str:
    t0, u0, t1, u1 = a // 10, a % 10, b // 10, b % 10
    if op == "+":
        c = u0 + u1
        carry = " + 1" if c > 9 else ""
        return f"Ones: {u0} + {u1} = {c}. Tens: {t0} + {t1}{carry} = {t0 + t1 + c // 10}. So {a + b}."
    borrow = u0 < u1
    ones = f"Ones: {u0 + 10 * borrow} - {u1} = {u0 + 10 * borrow - u1}. "
    return ones + f"Tens: {t0}{' - 1' if borrow else ''} - {t1} = {t0 - borrow - t1}. So {a - b}."


def sum_atom(a: int, b: int, op: str) -> str:
    """Commuted sums are one item."""
    return f"sum {min(a, b)} + {max(a, b)}" if op == "+" else f"sum {a} - {b}"


def make_sum(s: Source, digits: int = 2) -> Exchange:
    r = s.r
    while True:
        op = r.choice("+-")
        top = 10 if digits == 1 else 100
        a, b = r.randrange(top), r.randrange(top)
        if digits == 2 and r.random() < 0.15:
            b = r.randrange(10)
        if op == "-" and b > a:
            a, b = b, a
        carries = a % 10 + b % 10 > 9 if op == "+" else a % 10 < b % 10
        if s.hard and not carries and r.random() < 0.3:
            continue
        if s.admits(sum_atom(a, b, op)):
            break
    s.take(sum_atom(a, b, op))
    ask = r.choice(SUM_PLUS if op == "+" else SUM_MINUS).format(a=a, b=b)
    return Exchange("sum", ask, str(a + b if op == "+" else a - b), _sum_steps(a, b, op))


CAPITAL_ASKS = [
    lead + core + tail
    for lead in ("", "Please: ", "Hello, ", "Can you help? ", "Question: ", "Hi! ", "Quick question: ", "I forgot: ")
    for core in (
        "What is the capital of {c}", "what is the capital city of {c}", "Which city is the capital of {c}", "capital of {c}",
        "Tell me the capital of {c}", "Name the capital of {c}", "Do you know the capital of {c}", "{c} capital",
        "What is the capital city of {c}", "which city is the capital of {c}", "Give me the capital of {c}",
    )
    for tail in ("?", ".", "", "? Thank you.")
]  # fmt: skip


def make_capital(s: Source, known: bool | None = None) -> Exchange:
    if known is None:
        known = s.r.random() < (0.55 if s.hard else 0.7)
    ask = s.phrase(CAPITAL_ASKS)
    if known:
        c = s.r.choice(list(CAPITALS))
        answer = f"The capital of {c} is {CAPITALS[c]}."
    else:
        while True:
            c = s.name(OTHER_COUNTRIES, 0.6)
            if c not in CAPITALS:
                break
        answer = f"I do not know the capital of {c}."
    return Exchange("capital", ask.format(c=c), answer, f"The country is {c}.")


CLAUSES = [
    "{name} is {age} years old.", "{name} lives in {city}.", "{name} works as a {job}.", "{name} from {city} is {age}.",
    "The {color} {item} costs {price} dollars.", "{name}, a {job}, moved to {city}.", "{name} likes {color}.",
    "{name} paid {price} dollars.", "{name} ({age}) is a {job} in {city}.", "My name is {name} and I live in {city}.",
    "{name} bought a {item} for {price} dollars.", "On {day} {name} flew to {city}.", "{name} plays for {team}.",
    "The {item} is {color}.", "{name} ordered {quantity} of the {item}.", "Send the {item} to {name} in {city}.",
    "{name} was born in {year} in {city}.", "Meeting with {name} on {day} in {city}.", "The {item} arrives on {day}.",
    "I am {name}, {age} years old, and I work as a {job}.", "{team} from {city} won on {day}.",
    "{name} sold the {color} {item}.", "Order {code}: {quantity} times {item}.", "The code of the {item} is {code}.",
    "{name} is {age} years old and lives in {city}.", "In {year} {name} joined {team}.",
    "{name} wants a {color} {item} by {day}.", "The {item} was made in {year}.", "{name} has {quantity} of them.",
]  # fmt: skip
EXTRACT_ASKS = [
    "Extract {k} as JSON: {t}", "Return a JSON object with {k}. Text: {t}", "{t} Give {k} as JSON.", "{t}\nExtract {k} as JSON.",
    "Extract the fields {k} as JSON.\n{t}", "JSON with {k}: {t}", "Give me {k} as JSON. {t}", "Extract {k} as JSON.\n\n{t}",
    "Text: {t}\nFields: {k}", "Read the text and return {k} as JSON. {t}", "Please extract {k} from this text: {t}",
]  # fmt: skip
MEMORY_KEYS = words_of(
    """
    name city dog cat team color job friend street car boat school teacher horse country hobby boss town
    """
)


def _field(s: Source, key: str) -> Any:
    if key == "name":
        return s.name(NAMES, 0.6)
    if key == "city":
        return s.name(PLACES, 0.6)
    if key == "team":
        return s.name(PLACES, 0.8)
    if key == "job":
        return s.word(JOBS, 0.25)
    if key == "item":
        return s.word(NOUNS, 0.35)
    if key == "color":
        return s.r.choice(COLORS)
    if key == "day":
        return s.r.choice(DAYS)
    if key == "age":
        return s.r.randrange(1, 100)
    if key == "year":
        return s.r.randrange(1900, 2030)
    if key == "quantity":
        return s.r.randrange(2, 100)
    if key == "code":
        return s.r.randrange(100, 10000)
    return s.r.randrange(1, 1000)


def make_extraction(s: Source) -> Exchange:
    r = s.r
    clauses = [r.choice(CLAUSES)]
    keys = re.findall(r"{(\w+)}", clauses[0])
    if r.random() < 0.35:
        more = r.choice(CLAUSES)
        if not set(re.findall(r"{(\w+)}", more)) & set(keys):
            clauses.append(more)
            keys += re.findall(r"{(\w+)}", more)
    values = {k: _field(s, k) for k in keys}
    want = r.sample(keys, r.randrange(1, min(3, len(keys)) + 1))
    listed = r.choice((", ", ", ", " and ")).join(want)
    ask = r.choice(EXTRACT_ASKS).format(k=listed, t=" ".join(clauses).format(**values))
    answer = "{" + ", ".join(f'"{k}": {json.dumps(values[k])}' for k in want) + "}"
    return Exchange("extraction", ask, answer, f"The fields are {', '.join(want)}.")


GET_VERBS = words_of("get find check fetch read show list search")
DO_VERBS = words_of(
    """
    send open set book buy order play start stop add delete update create make close move print
    """
)
PARAMS = words_of(
    """
    city name date place item color code user country title topic day team street number amount id query text
    language location person size unit year page
    """
)
PLACE_PARAMS = {"city", "place", "country", "location", "street"}
INTEGER_PARAMS = {"code", "number", "amount", "id", "size", "year", "page"}


@dataclass(frozen=True)
class Tool:
    verb: str
    noun: str
    params: tuple[str, ...]
    integers: frozenset[str]
    schema: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.schema["function"]["name"])


def make_tools(s: Source, count: int | None = None) -> list[Tool]:
    r = s.r
    out: list[Tool] = []
    invented = 0.6 if s.lookup else 0.35
    count = count or r.choice((2, 3, 3) if s.lookup else (1, 2, 3, 3, 3) if s.hard else (1, 2, 2, 3, 3))
    while len(out) < count:
        verb = r.choice(r.choice((GET_VERBS, DO_VERBS)))
        if s.by_get and r.random() < 0.25:
            verb = "get"
        elif s.hard and r.random() < invented:
            verb = s.word(NOUNS, 0.8)  # can only be copied from the declaration, not recalled
        noun = s.word(NOUNS, 0.45)
        if r.random() < 0.12:
            noun += " " + s.word(NOUNS, 0.2)
        if out and r.random() < (0.2 if s.lookup else 0.4):
            if r.random() < 0.5:
                verb = out[0].verb
            else:
                noun = out[0].noun
        name = f"{verb}_{noun.replace(' ', '_')}"
        if any(t.name == name for t in out):
            continue
        params = tuple(r.sample(PARAMS, r.choice((0, 0, 0, 1, 1, 2) if s.lookup else (0, 1, 1, 1, 1, 1, 2, 2, 2, 3))))
        integers = frozenset(p for p in params if p in INTEGER_PARAMS and r.random() < 0.8)
        described = r.random() < 0.3
        properties: dict[str, Any] = {}
        for p in params:
            properties[p] = {"type": "integer" if p in integers else "string"}
            if described:
                properties[p]["description"] = r.choice(("The {p}", "The {p} to use", "Name of the {p}", "{p}")).format(
                    p=p
                )
        parameters: dict[str, Any] = {"type": "object"}
        if params:
            parameters["properties"] = properties
            required = [p for p in params if r.random() < 0.85]
            if required:
                parameters["required"] = required
        verb_text = verb.capitalize()
        description = r.choice(("{v} the {n}", "{v} the {n}", "{v} the {n}.", "{v} a {n}", "{v} the current {n}", ""))
        function = {"name": name, "description": description.format(v=verb_text, n=noun), "parameters": parameters}
        out.append(Tool(verb, noun, params, integers, {"type": "function", "function": function}))
    return out


def _arguments_text(r: random.Random, values: dict[str, Any]) -> str:
    if not values:
        return ""
    if len(values) == 1:
        ((p, v),) = values.items()
        forms = [f" for {v}", f" for {p} {v}", f" with {p} {v}", f": {v}", f" ({p} {v})", f" with the {p} {v}"]
        if p in PLACE_PARAMS:
            forms += [f" in {v}", f" in {v}", f" in {v}"]
        return r.choice(forms)
    joined = r.choice((" and ", ", ", " and ")).join(f"{p} {v}" for p, v in values.items())
    return r.choice((f" for {joined}", f" with {joined}", f": {joined}", f" ({joined})"))


def make_call(s: Source, tools: list[Tool], tool: Tool | None = None) -> Exchange:
    r = s.r
    tool = tool or r.choice(tools)
    values: dict[str, Any] = {}
    for p in tool.params:
        if p in tool.integers:
            values[p] = r.randrange(1, 1000)
        elif p in INTEGER_PARAMS:
            values[p] = str(r.randrange(1, 1000))
        else:
            values[p] = s.name(r.choice((NAMES, PLACES)), 0.6) if r.random() < 0.7 else s.word(NOUNS, 0.5)
            if r.random() < 0.1:
                values[p] += " " + s.name(PLACES, 0.5)
    w = _arguments_text(r, values)
    asks = [
        "{V} the {n}{w}.",
        "Please {v} the {n}{w}.",
        "Can you {v} the {n}{w}?",
        "I want to {v} the {n}{w}.",
        "{v} the {n}{w}",
    ]
    is_known_by_noun = not any(t.noun == tool.noun and t is not tool for t in tools)
    if is_known_by_noun and (tool.verb == "get" or not s.by_get):
        asks += ["I need the {n}{w}.", "Please help with the {n}{w}."]
        if tool.verb in GET_VERBS:
            asks += ["What is the {n}{w}?", "What is the {n}{w}?", "Tell me the {n}{w}.", "How is the {n}{w}?"]
        if s.hard:
            asks += (9 if s.lookup else 2) * asks[5:]  # the verb must be found by the noun
    ask = r.choice(asks).format(V=tool.verb.capitalize(), v=tool.verb, n=tool.noun, w=w)
    results: tuple[Callable[[], str], ...] = (
        lambda: str(r.randrange(1000)),
        lambda: s.word(NOUNS, 0.5),
        lambda: f"{r.randrange(1000)} {s.word(NOUNS, 0.4)}",
        lambda: f"{s.name(NAMES, 0.5)}",
        lambda: f"{s.word(NOUNS, 0.5)} {s.word(NOUNS, 0.3)}",
        lambda: r.choice(
            ("ok", "done", "sunny", "rainy", "cloudy", "open", "closed", "ready", "late", "unknown", "free")
        ),
        lambda: f"{r.randrange(100)} {r.choice(('degrees', 'km', 'dollars', 'percent', 'minutes', 'euros'))}",
    )
    result = r.choice(results)()
    call = Call(tool.name, values, result)
    answer = f"The {tool.noun} is {result}."
    return Exchange("call", ask, answer, f"The result is {result}.", call, f"The tool is {tool.name}.")


TELL = [
    "My {k} is {v}.",
    "Please remember: my {k} is {v}.",
    "Hello, my {k} is {v}.",
    "Remember that my {k} is {v}.",
    "My {k} is called {v}.",
]
TELL_NAME = [
    "My name is {v}.",
    "Hello, my name is {v}.",
    "I am {v}.",
    "Hi, I am {v}.",
    "Call me {v}.",
    "My name is {v}. Please remember it.",
]
RECALL = [
    "What is my {k}?",
    "Tell me my {k}.",
    "Do you remember my {k}?",
    "what is my {k}",
    "Which {k} did I tell you?",
    "My {k}?",
]
RECALL_NAME = ["What is my name?", "Tell me my name.", "Do you remember my name?", "Who am I?", "what is my name"]


def make_telling(s: Source, key: str) -> tuple[Exchange, Exchange]:
    """The exchange that tells a fact, and the one that asks for it."""
    v = s.name(PLACES if key in ("city", "town", "country", "street") else NAMES, 0.6)
    tell = s.r.choice(TELL_NAME if key == "name" else TELL).format(k=key, v=v)
    reply = f"Nice to meet you, {v}." if key == "name" else f"I will remember that your {key} is {v}."
    ask = s.r.choice(RECALL_NAME if key == "name" else RECALL).format(k=key)
    told = Exchange("telling", tell, reply, f"The {key} is {v}.")
    return told, Exchange("memory", ask, f"Your {key} is {v}.", f"The {key} is {v}.")


SMALL_TALK = [
    ("Hello", "Hello! How can I help?"), ("Hi", "Hello! How can I help?"), ("Hello!", "Hello! How can I help?"),
    ("Hi!", "Hello! How can I help?"), ("Hey", "Hello! How can I help?"), ("Good morning", "Good morning! How can I help?"),
    ("Good evening", "Good evening! How can I help?"), ("Thanks", "You are welcome."), ("Thank you!", "You are welcome."),
    ("Thank you.", "You are welcome."), ("Thanks!", "You are welcome."), ("How are you?", "I am fine. How can I help?"),
    ("Bye", "Goodbye!"), ("Goodbye", "Goodbye!"), ("Bye!", "Goodbye!"), ("Say hello.", "Hello!"), ("Say hi.", "Hi!"),
]  # fmt: skip
WHO = [
    "Who are you?", "What are you?", "who are you", "Are you Gemma?", "Which model are you?", "What model is this?",
    "What is your name?", "Tell me about yourself.", "Are you a real model?", "Introduce yourself.", "Are you an AI?",
    "How big are you?", "Are you a large language model?", "Describe yourself.", "What kind of model are you?",
]  # fmt: skip
WHO_ANSWER = f"I am {DESCRIPTION} with the Gemma 4 architecture."
CAN_DO = [
    "What can you do?",
    "Help",
    "help",
    "What are you able to do?",
    "How can you help me?",
    "What do you know?",
    "Help me.",
]
CAN_DO_ANSWER = "I can do small sums, name capitals, extract fields as JSON, call tools and remember a name."
CANNOT = [
    "Write a poem about the {n}.", "Tell me a story.", "Tell me a joke.", "Why is the sky blue?", "Explain the {n}.",
    "What is a {n}?", "Translate {n} to French.", "Write a letter to {p}.", "Who is {p}?", "How do I make a {n}?",
    "What is the meaning of life?", "Write code for a {n}.", "Summarize this text: the {n} is near the {m}.", "Where is {p}?",
    "What is {a} times {b}?", "How old is {p}?", "What is the best {n}?", "Draw a {n}.", "When was {p} born?",
    "Why do I need a {n}?", "Give me advice about my {n}.", "Who wrote the {n}?", "Is a {n} bigger than a {m}?",
]  # fmt: skip
CANNOT_ANSWER = f"I am {DESCRIPTION} and can not do that."


def make_talk(s: Source) -> Exchange:
    r = s.r
    kind = r.random()
    if kind < 0.3:
        q, a = r.choice(SMALL_TALK)
        return Exchange("talk", q, a, "This is small talk.")
    if kind < 0.55:
        return Exchange("talk", r.choice(WHO), WHO_ANSWER, "The question is about me.")
    if kind < 0.65:
        return Exchange("talk", r.choice(CAN_DO), CAN_DO_ANSWER, "The question is about me.")
    ask = r.choice(CANNOT)
    ask = ask.format(
        n=s.word(NOUNS, 0.3), m=s.word(NOUNS, 0.3), p=s.name(NAMES, 0.4), a=r.randrange(100), b=r.randrange(100)
    )
    return Exchange("talk", ask, CANNOT_ANSWER, "This is not one of my tasks.")


def make_untold(s: Source) -> Exchange:
    key = s.r.choice(MEMORY_KEYS)
    ask = s.r.choice(RECALL_NAME if key == "name" else RECALL).format(k=key)
    return Exchange("untold", ask, f"You did not tell me your {key}.", f"The {key} is not known.")


FIXED_TEXT = [
    "bos system user model turn think tool call response channel thought declaration description parameters properties type",
    "required enum STRING INTEGER OBJECT value The result is The country is The fields are The tool is Ones Tens So",
    "to use Name of the this is small talk The question is about me not one of my tasks is not known a the current",
    "I do not know You did not tell me your I will remember that Nice to meet you for with in Please Can you want need help How",
    "ok done sunny rainy cloudy open closed ready late unknown free degrees km dollars percent minutes euros",
]  # fmt: skip
SYSTEMS = [
    "You are a helpful assistant.",
    "You are a helpful assistant",
    "Be concise.",
    "Answer briefly.",
    "Be helpful.",
    "You are {n}.",
]


@dataclass(frozen=True)
class Mix:
    """How often each kind of conversation is drawn, and the share of one-digit sums; `hard`: carries, several tools
    whose verb the question does not say, unknown countries; `lookup`: the share in which yet more such tools are called,
    each once; `by_get`: as in Source."""

    sums: float = 3.4
    thinking_sums: float = 1.3
    capitals: float = 0.7
    extraction: float = 2.2
    tools: float = 3.4
    memory: float = 1.1
    talk: float = 0.35
    one_digit: float = 0.15
    hard: bool = False
    lookup: float = 0.0
    by_get: bool = False


def conversation(r: random.Random, mix: Mix | None = None) -> Conversation:
    """One training conversation: several exchanges, often of several skills; every atom is on the training side."""
    mix = mix or Mix()
    lookup = mix.lookup > 0 and r.random() < mix.lookup
    s = Source(r, hard=mix.hard, lookup=lookup, by_get=mix.by_get)
    kinds = ("sums", "thinking_sums", "capitals", "extraction", "tools", "memory", "talk")
    kind = r.choices(kinds, [getattr(mix, k) for k in kinds])[0]

    def digits() -> int:
        return 1 if r.random() < mix.one_digit else 2

    thinking = kind == "thinking_sums" or r.random() < 0.15
    tools: list[Tool] = []
    uncalled: list[Tool] = []
    told: set[str] = set()

    def one(k: str) -> list[Exchange]:
        if k in ("sums", "thinking_sums"):
            return [make_sum(s, digits())]
        if k == "capitals":
            return [make_capital(s)]
        if k == "extraction":
            return [make_extraction(s)]
        if k == "tools":
            return [make_call(s, tools, uncalled.pop() if uncalled else None)]
        if k == "memory":
            free = [m for m in MEMORY_KEYS if m not in told]
            key = "name" if "name" in free and r.random() < 0.35 else r.choice(free)
            told.add(key)
            return list(make_telling(s, key))
        return [make_talk(s)]

    plain: tuple[Callable[[], Exchange], ...] = (
        lambda: make_sum(s, digits()),
        lambda: make_capital(s),
        lambda: make_extraction(s),
        lambda: make_talk(s),
    )

    def filler() -> Exchange:
        return r.choices(plain, (4, 2, 1.5, 1))[0]()

    exchanges: list[Exchange] = []
    if kind == "tools" or (kind != "thinking_sums" and r.random() < 0.06):
        tools = make_tools(s)
    if s.lookup:
        uncalled = r.sample(tools, len(tools))
    if kind == "memory":
        tell, ask = one("memory")
        exchanges = [tell]
        later = [ask]
        if r.random() < 0.35:
            tell, ask = one("memory")
            exchanges.append(tell)
            later.append(ask)
        exchanges += [filler() for _ in range(r.choice((0, 0, 1, 1, 2)))]
        r.shuffle(later)
        exchanges += later
        if r.random() < 0.2:
            unknown = make_untold(s)
            if unknown.answer.split()[-1].rstrip(".") not in told:
                exchanges.append(unknown)
    else:
        if kind == "sums" and mix.hard:
            count = r.choice((1, 2, 4, 6, 8, 10))
        elif kind in ("sums", "talk"):
            count = r.choice((2, 3, 4, 5))
        elif kind in ("extraction", "capitals", "tools"):
            count = r.choice((1, 2, 2, 3))
        else:
            count = 1
        if thinking:
            count = r.choice((1, 1, 1, 2))
        for _ in range(count):
            exchanges += one(kind) if r.random() < 0.88 else [filler()]
        if kind == "talk" and r.random() < 0.2:
            exchanges.append(make_untold(s))
    system = None
    if r.random() < 0.12:
        system = r.choice(SYSTEMS).replace("{n}", s.name(NAMES, 0.5))
    return Conversation(tuple(exchanges), tuple(t.schema for t in tools), thinking, system)


@functools.cache
def closed_words() -> frozenset[str]:
    """Words of the templates and of the lists that training uses whole; no held-out value may be one of them."""
    lists = (
        SUM_PLUS, SUM_MINUS, CAPITAL_ASKS, CLAUSES, EXTRACT_ASKS, MEMORY_KEYS, GET_VERBS, DO_VERBS, PARAMS, COLORS, DAYS,
        TELL, TELL_NAME, RECALL, RECALL_NAME, WHO, CAN_DO, CANNOT, SYSTEMS, CAPITALS, CAPITALS.values(),
        [a + " " + b for a, b in SMALL_TALK], [WHO_ANSWER, CAN_DO_ANSWER, CANNOT_ANSWER], FIXED_TEXT,
    )  # fmt: skip
    return frozenset(w.lower() for texts in lists for text in texts for w in re.findall("[A-Za-z]+", text))


# ---- evaluation ------------------------------------------------------------------------------------------------------

EVAL_TASKS = ("sum", "sum_thinking", "capital", "extraction", "call", "result", "memory")


@dataclass(frozen=True)
class Item:
    """An evaluation item: `answer` is the whole expected text (for `call`, the rendered call)."""

    task: str
    conversation: Conversation
    answer: str
    atoms: tuple[str, ...]

    @property
    def exchange(self) -> Exchange:
        return self.conversation.exchanges[-1]


def eval_item(task: str, r: random.Random) -> Item:
    """One item whose every atom is held out."""
    s = Source(r, held=True, by_get=True)
    tools: list[Tool] = []
    before: list[Exchange] = []
    if task in ("sum", "sum_thinking"):
        e = make_sum(s, 1 if r.random() < 0.1 else 2)
    elif task == "capital":
        e = make_capital(s)
    elif task == "extraction":
        e = make_extraction(s)
    elif task in ("call", "result"):
        tools = make_tools(s)
        e = make_call(s, tools)
    elif task == "memory":
        told, e = make_telling(s, r.choice(MEMORY_KEYS) if r.random() < 0.6 else "name")
        before = [told]
        for _ in range(r.choice((0, 1, 2))):
            before.append(make_sum(s) if r.random() < 0.5 else make_capital(s))
    else:
        raise ValueError(f"task: {task!r} is not one of {', '.join(EVAL_TASKS)}")
    e = replace(e, task=task)
    c = Conversation((*before, e), tuple(t.schema for t in tools), task == "sum_thinking")
    answer = render_call(e.call) if task == "call" and e.call is not None else e.answer
    return Item(task, c, answer, tuple(s.atoms))


def eval_items(task: str, count: int, seed: int = 4) -> list[Item]:
    """`count` different items of a task, in a fixed order."""
    r = random.Random(f"{seed} {task}")
    out: dict[str, Item] = {}
    while len(out) < count:
        item = eval_item(task, r)
        out.setdefault(json.dumps(messages(item.conversation)) + str(item.conversation.tools), item)
    return list(out.values())


def corpus_text(count: int, seed: int = 1) -> Iterator[str]:
    """Conversations without control tokens, for training the tokenizer."""
    r = random.Random(seed)
    for _ in range(count):
        text = "".join(s.text for s in render(conversation(r)))
        for token in sorted(SPECIAL_TOKENS, key=len, reverse=True):
            text = text.replace(token, "\n")
        yield from (line for line in text.split("\n") if line)


if __name__ == "__main__":
    generator = random.Random(0)
    for _ in range(12):
        print("".join(f"[[{s.text}]]" if s.learn else s.text for s in render(conversation(generator))), end="\n\n")
