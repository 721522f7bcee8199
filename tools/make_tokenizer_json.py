"""Rebuilds the published `tokenizer.json` of Gemma 4, byte for byte, from Google's `tokenizer_gemma4.model`.

    python tools/make_tokenizer_json.py OUT.json [tests/data/tokenizer_gemma4.model]

Exits with an error if the result differs from the released file (32,169,626 bytes). Takes some 7 s. What it shows:
  - merges are every split of a piece into two pieces, by (score, length of left, length of right), descending;
  - id 258884 is `<|video|>` in the released file and `<unused2968>` in the SentencePiece model; the names of the ids
    behind it are shifted by one.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

SHA256 = "cc8d3a0ce36466ccc1278bf987df5f71db1719b9ca6b4118264f45cb627bfe0f"
MODEL = Path(__file__).resolve().parent.parent / "tests" / "data" / "tokenizer_gemma4.model"
VIDEO_ID = 258_884
SPECIAL = [
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<mask>",
    "<|tool>",
    "<tool|>",
    "<|tool_call>",
    "<tool_call|>",
    "<|tool_response>",
    "<tool_response|>",
    '<|"|>',
    "<|think|>",
    "<|channel>",
    "<channel|>",
    "<|turn>",
    "<turn|>",
    "<|image>",
    "<|audio>",
    "<|image|>",
    "<|audio|>",
    "<image|>",
    "<audio|>",
    "<|video|>",
]


def build(model_file: Path) -> Tokenizer:
    """The tokenizer as the `tokenizers` library saves it."""
    proto: Any = sentencepiece_model_pb2
    model = proto.ModelProto()
    model.ParseFromString(model_file.read_bytes())
    pieces = [p.piece for p in model.pieces]
    ids = {piece: i for i, piece in enumerate(pieces)}
    merges = [
        (model.pieces[i].score, cut, len(piece) - cut, piece[:cut], piece[cut:])
        for piece, i in ids.items()
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    merges.sort(key=lambda m: m[:3], reverse=True)
    pieces = [*pieces[:VIDEO_ID], "<|video|>", *pieces[VIDEO_ID:-1]]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}

    pairs = [(left, right) for *_, left, right in merges]
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])
    special = sorted(SPECIAL, key=lambda s: vocabulary[s])
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in special])
    return tokenizer


def main() -> int:
    parser = argparse.ArgumentParser(description="Rebuild the published tokenizer.json of Gemma 4.")
    parser.add_argument("out", type=Path)
    parser.add_argument("model", type=Path, nargs="?", default=MODEL)
    options = parser.parse_args()
    build(options.model).save(str(options.out))
    digest = hashlib.sha256(options.out.read_bytes()).hexdigest()
    if digest != SHA256:
        print(f"{options.out} has sha256 {digest}; the released file has {SHA256}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
