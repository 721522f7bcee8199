"""The golden checkpoints with true head widths on the CUDA backend, whose kernels run on the host.

Products take their inputs rounded to bf16 and K and V are kept in bf16, so the yardstick is the framework's own bf16
run: our distance to its f32 logits may be 1.5 times as large, over all rows.

A row of a mixture may go to another expert where two are as good as equally likely, and every later row sees its K and
V. In `26b` that is row 6 of layer 0: experts 4 and 0 stand at 0.19682 and 0.19593, and the framework's own bf16 run
gives both the same score, 0.19716. It takes 4 by the order of its sort, we take 0: roundings of q, k, v, of the
attention's output and of the router's input move the difference of the logits from 0.0045 to -0.0020, none of them
alone. So the yardstick is held against the float64 oracle with such ties settled either way; one way must explain all.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "true"
BUILD = Path(os.environ.get("GEMMANTLE_BUILD_DIR", ROOT / "build" / "dev"))
PLUGIN = BUILD / "tests" / "cpp" / "libgemmantle_cuda_plugin_on_host.so"
PROGRAM = Path(__file__).parent / "golden_on_cuda.py"

pytestmark = pytest.mark.skipif(not PLUGIN.exists(), reason=f"{PLUGIN} is not built: cmake --build --preset dev")

NEAR_TIE = 3e-2  # of the spread of a row's logits
ALLOWED = 1.5  # times the distance of the framework's bf16 run
ROUTER_TIE = 2.0**-7  # between two logits of a router: a step of bf16 where they are 1 to 2, as here

F64 = NDArray[np.float64]


def settled(folder: Path, ids: list[int]) -> list[F64]:
    """Logits of the oracle for every way to settle the near ties between the last expert taken and the next one."""
    config, weights = oracle.load(folder)
    used = config.experts_per_token
    ties: list[tuple[int, int]] = []

    def find(layer: int, p: F64) -> oracle.I64:
        logits = np.log(-np.sort(-p, -1))
        rows = np.flatnonzero(logits[:, used - 1] - logits[:, used] < ROUTER_TIE)
        ties.extend((layer, int(row)) for row in rows)
        return oracle.likeliest(p, used)

    def take_next(tied: tuple[tuple[int, int], ...]) -> F64:
        def choose(layer: int, p: F64) -> oracle.I64:
            chosen = oracle.likeliest(p, used + 1)
            for row in (row for of, row in tied if of == layer):
                chosen[row, used - 1] = chosen[row, used]
            return chosen[:, :used]

        return oracle.forward(config, weights, ids, choose=choose)

    oracle.forward(config, weights, ids, choose=find)
    assert len(ties) <= 4, f"{len(ties)} near ties: {ties}"
    return [take_next(tied) for n in range(len(ties) + 1) for tied in combinations(ties, n)]


class Case:
    """A checkpoint, what the framework says of it, and what the CUDA backend gave."""

    def __init__(self, name: str, found: dict[str, NDArray[Any]]) -> None:
        self.found = found
        with np.load(GOLDEN / name / "golden.npz") as golden:
            self.exact, self.bf16 = golden["logits"].astype(np.float64), golden["logits_bf16"]
            self.greedy = golden["greedy"].tolist()
            ids = golden["ids"].tolist()
        self.wanted = settled(GOLDEN / name, ids) if name == "26b" else [self.exact]

    def distance(self, logits: NDArray[Any]) -> float:
        """To the f32 run with its near ties settled alike, as a multiple of the distance of the bf16 run."""
        ours = min(float(np.linalg.norm(logits - wanted)) for wanted in self.wanted)
        return ours / float(np.linalg.norm(self.bf16 - self.exact))


@pytest.fixture(scope="module", params=sorted(folder.name for folder in GOLDEN.iterdir()))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    out = tmp_path_factory.mktemp("cuda") / "found.npz"
    environment = {**os.environ, "GEMMANTLE_CUDA_LIBRARY": str(PLUGIN)}
    command = [sys.executable, str(PROGRAM), str(GOLDEN / request.param), str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    with np.load(out) as found:
        yield Case(request.param, dict(found))


def test_it_ran_on_cuda(case: Case) -> None:
    assert str(case.found["device"]) == "cuda"


@pytest.mark.parametrize("how", ["whole", "chunked", "by_token"])
def test_logits_are_as_near_as_the_frameworks_own_bf16_run(case: Case, how: str) -> None:
    assert np.isfinite(case.found[how]).all()
    assert case.distance(case.found[how]) <= ALLOWED


def test_the_last_row_alone_is_the_last_row(case: Case) -> None:
    """The shortcut of prefill: only the wanted row goes through the layers that reuse K and V."""
    found, whole = case.found["last"], case.found["whole"][-1:]

    assert found.shape == whole.shape
    assert np.linalg.norm(found - whole) <= 1e-2 * np.linalg.norm(whole)


def test_decoding_equals_reading(case: Case) -> None:
    """Every decoded id has the largest logit, up to rounding, that its position has in a prompt that holds it."""
    read, ids = case.found["read"], case.found["alone"]
    behind = read.max(axis=1) - read[np.arange(len(ids)), ids]

    assert (behind <= NEAR_TIE * read.std(axis=1)).all()
    assert int(ids[0]) == case.greedy[0]


@pytest.mark.parametrize("how", ["batched", "hit"])
def test_decoding_is_the_same_in_a_batch_and_after_a_prefix_hit(case: Case, how: str) -> None:
    """Where the first id differs, both were as good: other numbers of rows take sums in another order."""
    alone, other, read = case.found["alone"], case.found[how], case.found["read"]
    [differing] = np.nonzero(alone != other)

    assert len(other) == len(alone)
    for i in differing[:1]:
        assert read[i, alone[i]] - read[i, other[i]] <= NEAR_TIE * read[i].std()


def test_a_prefix_is_reused(case: Case) -> None:
    first, second = case.found["cached"].tolist()

    assert first == 0
    assert second > 0
