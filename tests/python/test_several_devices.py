"""`device="cuda:0,1"`: what it may name, how layers follow memory, and memory that is computed before it is taken.

On simulated devices, in processes of their own: how many there are and how much they hold is asked once.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from cuda_on_host import ROOT, needs_plugin, run

FOLDER = ROOT / "tests" / "golden" / "true" / "12b"  # three layers

pytestmark = needs_plugin

LOAD = """
import json, sys, gemmantle
folder, device, options = sys.argv[1:]
try:
    with gemmantle.load(folder, device=device, **json.loads(options)) as engine:
        print(json.dumps({"info": engine.info()}, default=str))
except Exception as error:
    print(json.dumps({"kind": type(error).__name__, "words": str(error)}))
"""


def ask(program: str, *arguments: str, devices: int = 2, memory: str = "8589934592") -> Any:
    variables = {"GEMMANTLE_CUDA_ON_HOST_DEVICES": str(devices), "GEMMANTLE_CUDA_ON_HOST_MEMORY": memory}
    return json.loads(run([sys.executable, "-c", program, *arguments], **variables))


def load(device: str, memory: str = "8589934592", **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = ask(LOAD, str(FOLDER), device, json.dumps(options), memory=memory)
    return found


def test_each_device_is_listed_where_there_are_several() -> None:
    program = "import json, gemmantle; print(json.dumps([d['name'] for d in gemmantle.devices()]))"

    assert ask(program, devices=2)[2:] == ["cuda", "cuda:0", "cuda:1"]
    assert ask(program, devices=1)[2:] == ["cuda"]


def test_one_of_several_is_chosen_by_its_number() -> None:
    info = load("cuda:1")["info"]

    assert info["device"] == "cuda:1"
    assert info["layers_per_device"] == [3]


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("cuda:2", "names CUDA device 2; there are 2, counted from 0"),
        ("cuda:0,0", "give one of auto, cpu, reference, cuda, or numbers of CUDA devices"),
        ("cuda:", "must be one of auto, cpu, reference, cuda, or numbers of CUDA devices"),
    ],
)
def test_a_device_that_is_not_there_is_refused_in_words(device: str, words: str) -> None:
    assert words in load(device)["words"]


@pytest.mark.parametrize(("memory", "layers"), [("17000000,40000000", [0, 3]), ("40000000,17000000", [3, 0])])
def test_layers_go_where_the_memory_is(memory: str, layers: list[int]) -> None:
    assert load("cuda:0,1", memory)["info"]["layers_per_device"] == layers


@pytest.mark.parametrize(("device", "remedy"), [("cuda", "device='cuda:0,1'"), ("cuda:0,1", "no split fits")])
def test_weights_that_do_not_fit_are_refused_before_one_is_placed(device: str, remedy: str) -> None:
    refused = load(device, "8000000")

    assert refused["kind"] == "OutOfMemory"
    assert "the weights take" in refused["words"]
    assert remedy in refused["words"]


def test_a_cache_that_does_not_fit_is_refused_with_what_does() -> None:
    refused = load("cuda:0,1", "40000000", kv_budget=100_000_000)

    assert refused["kind"] == "OutOfMemory"
    assert "kv_bytes is 100000000; 'cuda:0,1' has room for" in refused["words"]
