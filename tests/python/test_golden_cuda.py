"""The golden checkpoints with true head widths on the CUDA backend, whose kernels run on the host.

Products take their inputs rounded to bf16 and K and V are kept in bf16, so the yardstick is the framework's own bf16
run: our distance to its f32 logits may be 1.5 times as large. A row of a mixture may go to another expert where two are
nearly as likely, and later rows see that; there the typical row is held to the yardstick.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
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


class Case:
    """A checkpoint, what the framework says of it, and what the CUDA backend gave."""

    def __init__(self, name: str, found: dict[str, NDArray[Any]]) -> None:
        self.found = found
        self.has_experts = name == "26b"
        with np.load(GOLDEN / name / "golden.npz") as golden:
            self.exact, self.bf16 = golden["logits"], golden["logits_bf16"]
            self.greedy = golden["greedy"].tolist()

    def distance(self, logits: NDArray[Any], first: int = 0) -> float:
        """Of rows `first` and on to the f32 run, as a multiple of the distance of the framework's bf16 run."""
        rows = slice(first, first + len(logits))

        def error(of: NDArray[Any]) -> float:
            each = np.linalg.norm(of.astype(np.float64) - self.exact[rows], axis=1)
            return float(np.median(each) if self.has_experts else np.linalg.norm(each))

        return error(logits) / error(self.bf16[rows])


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
