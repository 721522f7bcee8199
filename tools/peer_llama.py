"""llama.cpp, timed through the low-level interface of llama-cpp-python: a process that answers JSON lines.

Started by bench_peers.py with a Python that has `llama-cpp-python` and numpy; needs nothing of gemmantle. Requests:

    {"do": "open", "model": PATH, "threads": N, "context": N, "sequences": N}
    {"do": "prompt", "tokens": N, "all_logits": false}      a fresh prompt, logits of the last row or of all
    {"do": "decode", "depth": N, "sequences": N, "steps": N}  seconds of one step behind `depth` tokens

Every answer is {"seconds": ...} or {"error": ...}. Ids are random; sampling is not part of the time. KV in f16, flash
attention on, as the library has it: rows of a prompt in batches of up to 512.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import llama_cpp
import numpy as np

ROWS = 512  # of a batch


class Context:
    """A llama.cpp context over a model, with one batch that is filled again and again."""

    def __init__(self, model: Any, threads: int, tokens: int, sequences: int) -> None:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = tokens * sequences
        params.n_batch = params.n_ubatch = ROWS
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = 1
        params.swa_full = False
        self._context = llama_cpp.llama_init_from_model(model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp gave no context of {sequences} x {tokens} tokens")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(ROWS, 0, 1)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self._rng = np.random.default_rng(1)

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(self._memory, True)

    def append(self, rows: list[tuple[int, int]], logits: Callable[[int], bool]) -> None:
        """One batch of (sequence, position) rows of random ids; `logits` says which rows give some."""
        batch = self._batch
        batch.n_tokens = len(rows)
        ids = self._rng.integers(300, self._vocabulary, len(rows))
        for at, ((sequence, position), token) in enumerate(zip(rows, ids, strict=True)):
            batch.token[at] = int(token)
            batch.pos[at] = position
            batch.n_seq_id[at] = 1
            batch.seq_id[at][0] = sequence
            batch.logits[at] = logits(at)
        status = llama_cpp.llama_decode(self._context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")
        llama_cpp.llama_synchronize(self._context)

    def fill(self, sequence: int, tokens: int, all_logits: bool = False) -> None:
        for start in range(0, tokens, ROWS):
            rows = [(sequence, position) for position in range(start, min(start + ROWS, tokens))]
            last = len(rows) - 1 if start + ROWS >= tokens else -1
            self.append(rows, lambda at, last=last: all_logits or at == last)

    def close(self) -> None:
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)


class Peer:
    """A model with a context for every (depth, sequences) that decode was asked for, which keeps its place."""

    def __init__(self, request: dict[str, Any]) -> None:
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            os.fsencode(request["model"]), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {request['model']}")
        self._threads = int(request["threads"])
        self._spare = int(request["context"])  # tokens behind the depth, for all rounds
        self._prompt: Context | None = None
        self._decode: dict[tuple[int, int], tuple[Context, int]] = {}

    def prompt(self, tokens: int, all_logits: bool) -> float:
        if self._prompt is None:
            self._prompt = Context(self._model, self._threads, max(tokens, ROWS), 1)
        self._prompt.clear()
        started = time.perf_counter()
        self._prompt.fill(0, tokens, all_logits)
        return time.perf_counter() - started

    def decode(self, depth: int, sequences: int, steps: int) -> float:
        if (depth, sequences) not in self._decode:
            context = Context(self._model, self._threads, depth + self._spare, sequences)
            for sequence in range(sequences):
                context.fill(sequence, max(depth, 4))
            self._decode[depth, sequences] = (context, max(depth, 4))
        context, position = self._decode[depth, sequences]
        self._decode[depth, sequences] = (context, position + steps + 1)
        rows = [(sequence, position) for sequence in range(sequences)]
        context.append(rows, lambda _: True)
        started = time.perf_counter()
        for step in range(1, steps + 1):
            context.append([(sequence, position + step) for sequence in range(sequences)], lambda _: True)
        return (time.perf_counter() - started) / steps


def main() -> None:
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    answers = os.fdopen(os.dup(1), "w")  # whatever the library prints goes to standard error
    os.dup2(2, 1)
    peer: Peer | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "open":
                started = time.perf_counter()
                peer = Peer(request)
                seconds = time.perf_counter() - started
            elif peer is None:
                raise RuntimeError("open a model first")
            elif request["do"] == "prompt":
                seconds = peer.prompt(request["tokens"], request["all_logits"])
            else:
                seconds = peer.decode(request["depth"], request["sequences"], request["steps"])
            answer: dict[str, Any] = {"seconds": seconds}
        except Exception as exc:  # told to the other process, which ends
            answer = {"error": f"{type(exc).__name__}: {exc}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
