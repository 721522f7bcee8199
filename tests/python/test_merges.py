"""GGUF files with merges: where they become a SentencePiece model, it encodes every text as the merges do."""

from __future__ import annotations

import json
import random
import re

import gguf
import pytest
from conftest import DATA

from gemmantle import _core
from gemmantle.chat import render
from gemmantle.chat.segments import SPECIAL_IDS
from gemmantle.chat.tokenizer import Tokenizer, from_gguf_metadata
from gemmantle.errors import CorruptFile, UnsupportedModel

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


def write(path, tokens, types, merges, model="gemma4"):
    writer = gguf.GGUFWriter(str(path), "gemma4")
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def both(path):
    """The tokenizer of a file, whether it is a SentencePiece model, and the one that `tokenizers` makes of it."""
    checkpoint = _core.Checkpoint(str(path))
    is_model = _core.model_of_merges(checkpoint, set(SPECIAL_IDS)) is not None
    return Tokenizer.from_file(path), is_model, from_gguf_metadata(checkpoint.get, str(path))


# --- the published vocabulary -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tokenizer_json, tmp_path_factory):
    data = json.loads(tokenizer_json.read_text(encoding="utf-8"))
    tokens = sorted(data["model"]["vocab"], key=data["model"]["vocab"].get)
    merges = [" ".join(merge) for merge in data["model"]["merges"]]
    byte = re.compile(r"<0x[0-9A-F]{2}>\Z")
    # As newer files have it: some control strings are user-defined.
    kinds = dict.fromkeys(SPECIAL_IDS, CONTROL) | {"<unk>": UNKNOWN, "<|channel>": USER_DEFINED, '<|"|>': USER_DEFINED}
    types = [kinds.get(token, BYTE if byte.match(token) else NORMAL) for token in tokens]
    path = write(tmp_path_factory.mktemp("published") / "words.gguf", tokens, types, merges)
    ours, is_model, library = both(path)
    assert is_model
    return ours, library


def test_the_published_merges_become_a_model_with_the_same_facts(published):
    ours, library = published
    assert ours.pieces() == library.pieces()
    for fact in ("size", "control", "special", "bos_id", "eos_ids", "suppress", "suppress_tokens"):
        assert getattr(ours, fact) == getattr(library, fact), fact
    assert ours.special == SPECIAL_IDS


def test_ids_of_all_renderings(published, renderings):
    for number, row in enumerate(renderings):
        prompt = render(row["messages"], row["tools"], row["thinking"], row["series"])
        assert prompt.ids(published[0]) == row["ids"], f"row {number}"


def test_hostile_text_has_the_ids_of_the_merges(published):
    seed = 23
    rng = random.Random(seed)
    ours, library = published
    pieces = [piece.decode("utf-8", "replace") for piece in library.pieces()]
    scripts = [range(0x20), range(0x20, 0x7F), range(0xA0, 0x250), range(0x400, 0x460), range(0x900, 0x980)]
    scripts += [range(0x4E00, 0x4E80), range(0xAC00, 0xAC40), range(0x1F600, 0x1F650), range(0x10FF00, 0x10FFFF)]
    special = [*SPECIAL_IDS, "<0x41>", "<unk>", "<unused5>", "<table>", "</s>", "[multimodal]", "▁", "\u200d", "\ufffd"]

    def part():
        kind = rng.randrange(5)
        if kind == 0:
            return rng.choice(pieces)
        if kind == 1:
            return rng.choice(special)
        if kind == 2:
            return rng.choice("\n\t ▁a\x00-") * rng.choice([1, 2, 3, 30, 31, 32, 33, 64, 100])
        if kind == 3:
            return "".join(chr(rng.choice(rng.choice(scripts))) for _ in range(rng.randrange(1, 12)))
        piece = rng.choice(pieces)
        return piece[: rng.randrange(len(piece) + 1)]

    for _ in range(3000):
        text = "".join(part() for _ in range(rng.randrange(1, 12)))
        ids = ours.encode(text)
        assert ids == library.encode(text), f"seed {seed}: {text!r}"
        assert not set(ids) & set(ours.control), f"seed {seed}: {text!r}"
        assert ours.encode(text, control=True) == library.encode(text, control=True), f"seed {seed}: {text!r}"
    prose = (DATA / "english.txt").read_text(encoding="utf-8")
    assert ours.encode(prose * 20) == library.encode(prose * 20)


# --- small vocabularies -----------------------------------------------------------------------------------------------

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def small(tmp_path, words, merges, special=(), **options):
    """A file whose vocabulary is SPECIAL, BYTES and `words`. special: more control strings."""
    tokens = [*SPECIAL, *BYTES, *words, *special]
    types = [CONTROL, CONTROL, CONTROL, UNKNOWN, CONTROL, USER_DEFINED, *[BYTE] * 256]
    types += [NORMAL] * len(words) + [CONTROL] * len(special)
    return write(tmp_path / "small.gguf", tokens, types, [" ".join(merge) for merge in merges], **options)


def splits(words):
    known = set(words)
    return [
        (word[:cut], word[cut:])
        for word in words
        for cut in range(1, len(word))
        if word[:cut] in known and word[cut:] in known
    ]


def test_random_vocabularies_in_any_order_of_merges(tmp_path):
    seed = 51
    rng = random.Random(seed)
    rewritten = 0
    for case in range(300):
        alphabet = rng.sample([*"abc", "▁", "é", "🙂"], rng.randrange(1, 4))
        words = list(alphabet)
        for _ in range(rng.randrange(1, 25)):
            word = rng.choice(words) + rng.choice(words)
            if word not in words and len(word) < 9:
                words.append(word)
        scores = {word: rng.randrange(rng.choice([2, 5, 1000])) for word in words}
        merges = splits(words)
        order = rng.randrange(4)
        if order == 0:  # a piece after the other
            merges.sort(key=lambda merge: (scores[merge[0] + merge[1]], merge[0] + merge[1]))
        elif order == 1:  # as the published list, with scores that are shared
            merges.sort(key=lambda m: (scores[m[0] + m[1]], len(m[0]), len(m[1])), reverse=True)
        else:
            rng.shuffle(merges)
        if order == 3 and merges:
            merges.pop()
        if not merges:
            continue
        ours, is_model, library = both(small(tmp_path, words, merges))
        assert is_model == (order != 3), f"seed {seed}, case {case}: {merges}"
        rewritten += is_model
        assert ours.pieces() == library.pieces()
        for _ in range(150):
            text = "".join(rng.choices([*alphabet, " ", "ß"], [8] * len(alphabet) + [1, 1], k=rng.randrange(1, 24)))
            assert ours.encode(text) == library.encode(text), f"seed {seed}, case {case}: {text!r} by {merges}"
    assert 100 < rewritten < 290


WORDS = ["▁", "a", "b", "c", "ab", "abc", "bc"]
MERGES = [("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc")]


@pytest.mark.parametrize(
    "changes",
    [
        {"merges": MERGES[:3]},
        {"merges": [*MERGES, MERGES[0]]},
        {"words": [*WORDS, "ab"]},
        {"words": [*WORDS, ""]},
        {"words": [*WORDS, "x" * 300]},
        {"words": [*WORDS, "abcbc"]},
        {"words": WORDS[:-1], "special": ["bc"]},
        {"special": ["d"]},
        {"special": ["<0x41>"]},
    ],
)
def test_what_could_differ_goes_to_the_library_of_merges(tmp_path, changes):
    unchanged = {"words": WORDS, "merges": MERGES}
    assert both(small(tmp_path, **unchanged))[1]
    ours, is_model, library = both(small(tmp_path, **(unchanged | changes)))
    assert not is_model
    for text in ("abc", "aabcbc d", "<0x41>bc", "x" * 300):
        assert ours.encode(text) == library.encode(text)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"merges": [("a", "nowhere")]}, CorruptFile, "'a nowhere' is not two tokens"),
        ({"merges": [("a",)]}, CorruptFile, "'a' is not two tokens"),
        ({"merges": [("c", "a")]}, CorruptFile, "ca"),
        ({"model": "gpt2"}, UnsupportedModel, "'gpt2'"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, changes, error, words):
    path = small(tmp_path, **({"words": WORDS, "merges": MERGES} | changes))
    with pytest.raises(error, match=words) as raised:
        Tokenizer.from_file(path)
    assert str(path) in str(raised.value)
