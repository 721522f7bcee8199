"""Makes the golden checkpoints of tests/golden with an independent implementation: transformers and torch on the CPU.

    pip install torch transformers numpy safetensors
    python tools/make_goldens.py tests/golden [set/family ...]

Last run with transformers 5.23.0, torch 2.15.0 and numpy 2.4.6 (each folder's versions.json says its own). Weights and
prompts come from `tests/python/random_checkpoint.py` and are the same everywhere; the framework's logits may differ in
the last bits between machines. A seed is taken when nothing in it hangs on rounding: greedy choices and routed experts
have a margin, and the float64 oracle (`tests/python/oracle.py`), which reads the written folder, agrees.

What the framework runs: eager attention, f32, embedding scale rounded to bf16 as the released models have it.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "python"))

import oracle
import random_checkpoint as rc

PROMPT = 75
CONTINUATION = 64
GREEDY_GAP = 2e-3
PROMPT_GAP = 5e-4
ROUTER_GAP = 1e-4
ORACLE_LIMIT = 3e-5
DISTINCT = 16

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Golden:
    """How one folder is written; `shape` is its structure."""

    shape: rc.Shape
    layout: rc.Layout
    dtype: rc.Dtype = "BF16"
    shards: int = 1
    unused: bool = False
    towers: bool = False


def layers(pattern: str) -> tuple[bool, ...]:
    """'ssf' -> sliding, sliding, full."""
    return tuple(c == "f" for c in pattern)


GOLDENS = {
    # Sizes that no vector width divides. Donors of KV are not always the last two layers before the shared ones.
    "odd/e2b": Golden(
        rc.Shape(
            layers("ssfssfsf"), hidden=50, heads=5, kv_heads=1, head_dim=18, global_head_dim=38, mlp=67, vocab=331,
            window=16, ple=9, kv_shared=4, double_wide=True,
        ),
        "released", shards=3, unused=True,
    ),
    "odd/e4b": Golden(
        rc.Shape(
            layers("sfssssf"), hidden=46, heads=6, kv_heads=2, head_dim=22, global_head_dim=34, mlp=61, vocab=299,
            window=13, ple=25, kv_shared=3,
        ),
        "resaved", dtype="F32",
    ),
    "odd/12b": Golden(
        rc.Shape(
            layers("ssfssf"), hidden=58, heads=4, kv_heads=2, head_dim=26, global_head_dim=42, global_kv_heads=1,
            mlp=91, vocab=277, window=11, k_eq_v=True, unified=True,
        ),
        "released", towers=True,
    ),
    "odd/26b": Golden(
        rc.Shape(
            layers("ssfsf"), hidden=42, heads=6, kv_heads=3, head_dim=18, global_head_dim=30, global_kv_heads=2, mlp=45,
            vocab=307, window=16, k_eq_v=True, experts=7, experts_per_token=3, expert_mlp=21,
        ),
        "resaved",
    ),
    "odd/31b": Golden(
        rc.Shape(
            layers("sssfsf"), hidden=62, heads=8, kv_heads=4, head_dim=14, global_head_dim=26, global_kv_heads=2,
            mlp=101, vocab=353, window=17, k_eq_v=True, softcap=8.0,
        ),
        "released",
    ),
    "odd/gemma3": Golden(
        rc.Shape(
            layers("ssfsfs"), hidden=54, heads=6, kv_heads=3, head_dim=22, mlp=77, vocab=313, window=14, gemma=3,
            softcap=None, rope_factor=8.0, query_scalar=29,
        ),
        "released", dtype="F16",
    ),
    # Head widths of the released models, sizes that tensor cores like.
    "true/e2b": Golden(
        rc.Shape(
            layers("sfsf"), hidden=64, heads=2, kv_heads=1, head_dim=256, global_head_dim=512, mlp=96, vocab=320,
            window=16, ple=16, kv_shared=2, double_wide=True,
        ),
        "resaved",
    ),
    "true/e4b": Golden(
        rc.Shape(
            layers("sfsf"), hidden=32, heads=4, kv_heads=2, head_dim=256, global_head_dim=512, mlp=128, vocab=288,
            window=16, ple=16, kv_shared=2,
        ),
        "released", shards=2, unused=True, towers=True,
    ),
    "true/12b": Golden(
        rc.Shape(
            layers("ssf"), hidden=48, heads=4, kv_heads=2, head_dim=256, global_head_dim=512, global_kv_heads=1, mlp=96,
            vocab=320, window=16, k_eq_v=True,
        ),
        "resaved",
    ),
    "true/26b": Golden(
        rc.Shape(
            layers("sf"), hidden=48, heads=4, kv_heads=2, head_dim=256, global_head_dim=512, global_kv_heads=1, mlp=64,
            vocab=256, window=16, k_eq_v=True, experts=8, experts_per_token=2, expert_mlp=32,
        ),
        "released",
    ),
    "true/31b": Golden(
        rc.Shape(
            layers("sf"), hidden=32, heads=8, kv_heads=4, head_dim=256, global_head_dim=512, global_kv_heads=2, mlp=160,
            vocab=352, window=16, k_eq_v=True,
        ),
        "resaved", shards=2,
    ),
    "true/gemma3": Golden(
        rc.Shape(
            layers("ssf"), hidden=64, heads=4, kv_heads=1, head_dim=256, mlp=128, vocab=320, window=16, gemma=3,
            softcap=None, rope_factor=8.0,
        ),
        "nested", towers=True,
    ),
}  # fmt: skip


def framework_model(golden: Golden, weights: dict[str, F32]) -> Any:
    """The framework's f32 model with these weights and the embedding scales rounded to bf16."""
    fields = rc.config_json(golden.shape, "resaved", golden.dtype)
    for key in ("architectures", "model_type", "dtype"):
        del fields[key]
    framework: Any = transformers
    if golden.shape.gemma == 4:
        per_layer = {int(k): v for k, v in fields.pop("per_layer_config").items()}
        config = framework.Gemma4TextConfig(per_layer_config=per_layer, **fields)
        config._experts_implementation = "eager"
    else:
        config = framework.Gemma3TextConfig(**fields)
    config._attn_implementation = "eager"
    model = framework.Gemma4ForCausalLM(config) if golden.shape.gemma == 4 else framework.Gemma3ForCausalLM(config)
    state = {f"model.{k}": torch.from_numpy(v.copy()) for k, v in weights.items()}
    wanted = set(model.state_dict()) - {"lm_head.weight"}
    if missing := wanted - set(state):
        raise ValueError(f"weights lack {sorted(missing)[:3]}; the framework's model has them")
    model.load_state_dict({k: v for k, v in state.items() if k in wanted}, strict=False)
    model.tie_weights()
    for name, module in model.named_modules():
        if hasattr(module, "embed_scale"):
            module.embed_scale = module.embed_scale.to(torch.bfloat16).to(torch.float32)
            print(f"    {name}: scale {float(module.embed_scale):g}")
    return model.eval()


def bf16_model(model: Any) -> Any:
    """The same model in bf16, its rotary frequencies left in f32 as `from_pretrained(dtype=...)` does."""
    out = copy.deepcopy(model).to(torch.bfloat16)
    kept = {name: buffer for name, buffer in model.named_buffers() if "inv_freq" in name}
    for name, buffer in kept.items():
        parent, leaf = name.rsplit(".", 1)
        setattr(out.get_submodule(parent), leaf, buffer.clone())
    return out


def run(model: Any, ids: list[int]) -> F32:
    """Logits (n, vocabulary) of a whole forward pass without a cache."""
    with torch.no_grad():
        out: F32 = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float().numpy()
    return out


def top_gap(logits: F32) -> float:
    """Smallest distance between the largest and the second largest of any row."""
    best = np.sort(logits, -1)[:, -2:]
    return float((best[:, 1] - best[:, 0]).min())


def router_gap(model: Any, ids: list[int], k: int) -> float:
    """Smallest distance between the k-th and the next router probability, over layers and positions."""
    seen: list[torch.Tensor] = []
    routers = [module for name, module in model.named_modules() if name.endswith(".router")]
    hooks = [router.register_forward_hook(lambda _m, _i, output: seen.append(output[0])) for router in routers]
    run(model, ids)
    for hook in hooks:
        hook.remove()
    best = torch.cat([p.reshape(-1, p.shape[-1]) for p in seen]).sort(-1, descending=True).values
    return float((best[:, k - 1] - best[:, k]).min())


def write_folder(folder: Path, golden: Golden, model: Any, weights: dict[str, F32]) -> None:
    """Released and nested layouts by our own writer, re-saved ones by the framework's `save_pretrained`."""
    if golden.layout != "resaved":
        rc.write(
            folder, golden.shape, weights, layout=golden.layout, dtype=golden.dtype, shards=golden.shards,
            towers=golden.towers,
        )  # fmt: skip
        return
    dtype = {"F32": torch.float32, "BF16": torch.bfloat16}[golden.dtype]
    total = sum(p.numel() * dtype.itemsize for p in model.parameters())
    limit = "5GB" if golden.shards == 1 else f"{total // golden.shards // 1000 + 50}KB"
    copy.deepcopy(model).to(dtype).save_pretrained(folder, max_shard_size=limit)
    rc.write_json(folder / "generation_config.json", rc.GENERATION)
    for file in folder.iterdir():
        file.chmod(0o644)


def make(name: str, golden: Golden, out: Path) -> dict[str, float]:
    """Writes one folder; tries seeds until every margin holds. Returns the figures of the table."""
    folder = out / name
    for seed in range(1000 * (1 + list(GOLDENS).index(name)), 10**6):
        print(f"  {name} seed {seed}")
        rng = np.random.default_rng(seed)
        weights = rc.random_weights(golden.shape, rng, unused=golden.unused)
        weights = {k: rc.rounded(v, golden.dtype) for k, v in weights.items()}
        prompt = [2, *(int(t) for t in rng.integers(4, golden.shape.vocab, PROMPT - 1))]
        model = framework_model(golden, weights)
        prompt_gap = top_gap(run(model, prompt))
        if prompt_gap <= PROMPT_GAP:
            print(f"    prompt gap {prompt_gap:.1e}")
            continue
        ids = list(prompt)
        gap = 1.0
        for _ in range(CONTINUATION):
            row = run(model, ids)[-1:]
            gap = min(gap, top_gap(row))
            if gap <= GREEDY_GAP:
                break
            ids.append(int(row.argmax()))
        if gap <= GREEDY_GAP or len(set(ids[PROMPT:])) < DISTINCT:
            print(f"    greedy gap {gap:.1e} after {len(ids) - PROMPT}, {len(set(ids[PROMPT:]))} different ids")
            continue
        logits = run(model, ids)
        greedy = ids[PROMPT:]
        if not np.array_equal(logits[PROMPT - 1 : -1].argmax(-1), greedy):
            print("    a longer forward changed a choice")
            continue
        routed = router_gap(model, ids, golden.shape.experts_per_token) if golden.shape.experts else 1.0
        if routed <= ROUTER_GAP:
            print(f"    router gap {routed:.1e}")
            continue
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_folder(folder, golden, model, weights)
        config, read = oracle.load(folder)
        error = float(np.abs(oracle.forward(config, read, ids) - logits).max())
        if error > ORACLE_LIMIT:
            print(f"    oracle differs by {error:.1e}")
            continue
        with torch.no_grad():
            cached = model.generate(
                torch.tensor([prompt]), do_sample=False, top_k=None, max_new_tokens=CONTINUATION, eos_token_id=-1,
                attention_mask=torch.ones(1, PROMPT, dtype=torch.long),
            )[0, PROMPT:].tolist()  # fmt: skip
        if cached != greedy:
            raise ValueError(f"{name} seed {seed}: generate() with a cache differs from full forward passes")
        save(folder, prompt, logits[:PROMPT], run(bf16_model(model), prompt), greedy)
        figures = {
            "oracle": error,
            "bf16": float(np.abs(run(bf16_model(model), prompt) - logits[:PROMPT]).max()),
            "gap": gap,
            "prompt_gap": prompt_gap,
            "router_gap": routed,
            "std": float(logits.std()),
            "distinct": len(set(greedy)),
            "kilobytes": sum(f.stat().st_size for f in folder.iterdir()) / 1024,
        }
        versions = {
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "seed": seed,
            "layout": golden.layout,
            "dtype": golden.dtype,
            "largest_difference_to_oracle": float(f"{error:.2g}"),
            "smallest_greedy_gap": float(f"{gap:.2g}"),
            "smallest_router_gap": float(f"{routed:.2g}") if golden.shape.experts else None,
        }
        rc.write_json(folder / "versions.json", versions)
        return figures
    raise AssertionError("no seed")


def save(folder: Path, prompt: list[int], logits: F32, logits_bf16: F32, greedy: list[int]) -> None:
    np.savez_compressed(
        folder / "golden.npz",
        ids=np.asarray(prompt, np.int32),
        logits=logits.astype(np.float32),
        logits_bf16=logits_bf16.astype(np.float32),
        greedy=np.asarray(greedy, np.int32),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="make the golden checkpoints")
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", default=list(GOLDENS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging: Any = transformers.utils.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    table = {name: make(name, GOLDENS[name], arguments.out) for name in arguments.names}
    columns = list(next(iter(table.values())))
    print(f"\n{'':12}" + "".join(f"{c:>12}" for c in columns))
    for name, figures in table.items():
        print(f"{name:12}" + "".join(f"{figures[c]:12.3g}" for c in columns))
    size = sum(f.stat().st_size for f in arguments.out.rglob("*") if f.is_file())
    print(json.dumps({"total_megabytes": round(size / 1e6, 2)}))


if __name__ == "__main__":
    main()
