"""`gemmantle bench`: figures that follow from what was measured, and measurements of the embedded model."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gemmantle import _core, cli
from gemmantle.bench import fidelity, footprint, report, speed
from gemmantle.bench.ids import IdEngine, fresh_prompt
from gemmantle.bench.machine import Limits, Probe
from gemmantle.errors import RequestError

MODEL = "gemma-4-nano-e"
PATH = str(Path(cli.__file__).parent / "models" / MODEL)
LIMITS = Limits(threads=2, read=20.0, f32=100.0, bf16=None, i8=400.0)


def test_the_command_measures_modes_in_turns(capsys, tmp_path):
    out = tmp_path / "figures.json"
    words = "--mode exact fast --prompt 32 --decode 8 --depth 0 16 --batch 1 3 --rounds 2 --no-footprint --json".split()
    assert cli.main(["bench", MODEL, *words, str(out)]) == 0
    text = capsys.readouterr().out
    assert "first token" in text
    assert "of probe" in text
    figures = json.loads(out.read_text())
    assert figures["limits"]["read"] > 0
    found = {(row["what"], row["mode"], row["depth"], row["batch"]) for row in figures["speed"]}
    cases = {("first token", 0, 1), ("first token", 16, 1), ("all rows", 0, 1)}
    cases |= {("decode", depth, batch) for depth in (0, 16) for batch in (1, 3)}
    assert found == {(what, mode, depth, batch) for what, depth, batch in cases for mode in ("exact", "fast")}
    for row in figures["speed"]:
        assert len(row["seconds"]) == len(row["probe_gb_per_s"]) == 2
        assert row["median_s"] > 0


def test_numbers_out_of_range_are_named(capsys):
    assert cli.main(["bench", MODEL, "--rounds", "0"]) == 1
    assert "--rounds" in capsys.readouterr().err


def test_the_command_measures_fidelity(capsys, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 20, encoding="utf-8")
    assert cli.main(["bench", MODEL, "--mode", "exact", "fast", "--fidelity", str(text)]) == 0
    lines = capsys.readouterr().out.splitlines()
    exact = next(line for line in lines if line.startswith("exact"))
    assert exact.split()[2:5] == ["0.00e+00", "0.00e+00", "100.00%"]


class _Told:
    """An engine whose next-token probabilities are told, the same behind every id."""

    bos_id = 0

    def __init__(self, probabilities):
        self.row = np.log(np.asarray(probabilities, np.float32))

    def tokenize(self, text):
        return [int(letter) for letter in text]

    def logits(self, ids):
        return np.tile(self.row, (len(ids), 1)) + 3.0  # an offset changes no distribution


def test_divergence_agreement_and_perplexity_follow_their_definitions():
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.25, 0.5, 0.25])
    text = "012012"
    [found, same] = fidelity.compare(_Told(p), [_Told(q), _Told(p)], text)
    assert found.tokens == 6
    assert found.mean_kl == pytest.approx(float((p * np.log(p / q)).sum()), abs=1e-6)
    assert found.top1_agreement == 0
    losses = [-np.log(q[int(letter)]) for letter in text]
    assert found.perplexity == pytest.approx(float(np.exp(np.mean(losses))), rel=1e-6)
    reference = np.exp(np.mean([-np.log(p[int(letter)]) for letter in text]))
    assert found.perplexity_ratio == pytest.approx(found.perplexity / float(reference), rel=1e-6)
    assert (same.mean_kl, same.top1_agreement, same.perplexity_ratio) == (0, 1, 1)


def test_every_id_of_a_long_text_is_predicted_once():
    seen = []
    engine = _Told([0.5, 0.5])
    inner = engine.logits
    engine.logits = lambda ids: seen.append(len(ids)) or inner(ids)
    length = 2 * fidelity.WINDOW + 5
    [found] = fidelity.compare(engine, [_Told([0.5, 0.5])], "01" * (length // 2) + "0")
    assert found.tokens == length
    assert seen == [fidelity.WINDOW, fidelity.WINDOW, 5]
    with pytest.raises(ValueError, match="at least 2"):
        fidelity.compare(engine, [], "0")


def _operation(seconds, bytes_, operations, weight_format="q4_0"):
    return speed.Operation("linear", weight_format, (8, 8), 1, seconds, bytes_, operations)


def test_shares_are_relative_to_the_limit_that_binds():
    reads = _operation(seconds=1.0, bytes_=10e9, operations=4e9)
    assert speed.share_of_limit("fast", reads, LIMITS) == (0.5, "memory")
    multiplies = _operation(seconds=1.0, bytes_=1e9, operations=200e9)
    assert speed.share_of_limit("fast", multiplies, LIMITS) == (0.5, "products")
    assert speed.share_of_limit("exact", multiplies, LIMITS) == (2.0, "products")
    assert speed.share_of_limit("fast", _operation(1.0, 0, 0), LIMITS) == (0.0, "")
    one = speed.Measurement("fast", speed.Case("decode", 8, batch=4), [2.0, 1.0, 4.0], [10.0, 20.0, 40.0], [reads])
    assert one.median_seconds == 2.0
    assert one.tokens_per_second == 2.0
    assert one.share_of_read() == 0.5  # of 0.5, 0.5 and 0.0625, each against the probe of its round
    assert one.share_of_products(LIMITS) == pytest.approx(0.005)


def test_products_are_those_of_the_mode():
    assert LIMITS.products("exact", "q4_0") == 100
    assert LIMITS.products("fast", "q4_0") == 400
    assert LIMITS.products("fast", "bf16") == 100  # no bf16 products on this machine
    assert LIMITS.products("fast", None) == 100  # attention


def test_tables_stand_in_columns():
    assert report.table(("", "a", "bb"), [("x", "1", "2"), ("long", "10", "3")]) == (
        "       a  bb\nx      1   2\nlong  10   3\n"
    )


def test_a_profile_adds_up_to_the_weights():
    with IdEngine(PATH, mode="exact", max_context=512, sequences=2) as engine:
        rng = np.random.default_rng(3)
        engine.decode([fresh_prompt(rng, engine.vocabulary, 4)] * 2, 150)  # the first step may be counted in part
        profile = engine.take_profile()
        steps = next(entry["calls"] for entry in profile if entry["op"] == "sample")
        assert steps >= 150
        per_step = sum(entry["bytes"] for entry in profile if entry["op"] not in ("embed", "attend")) / steps
        config = engine.info()["config"]
        tables = config["vocab_size"] * (config["hidden_size"] + config["layers"] * config["per_layer_size"]) * 2
        weights = engine.info()["weight_bytes"]
        head = config["vocab_size"] * config["hidden_size"] * 2
        # All weights but the tables that are read by row are read once a step; the head is one of those tables.
        assert per_step == pytest.approx(weights - tables + head, rel=0.02)
        engine.first_token(fresh_prompt(rng, engine.vocabulary, 16))
        assert next(entry["calls"] for entry in engine.take_profile() if entry["op"] == "sample") == 1


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_a_profile_changes_no_bit(mode):
    ids = np.arange(300, 420, dtype=np.int32)
    plain, profiled = (
        _core.Engine(_core.Model.load(PATH, device="cpu", mode=mode, profile=profile), max_context=512).logits(ids)
        for profile in (False, True)
    )
    assert np.array_equal(plain, profiled)


def test_a_model_without_profile_says_so():
    model = _core.Model.load(PATH, device="cpu")
    with pytest.raises(RequestError, match="profile=True"):
        model.take_profile()


def test_the_probe_measures_and_refuses():
    limits = Probe(1).limits(0.01)
    assert limits.threads == 1
    assert limits.read > 0
    assert limits.f32 is not None
    assert limits.f32 > 0
    with pytest.raises(RequestError, match="f64"):
        _core.MachineProbe(1).product_rate("f64")


def test_load_and_memory_are_measured_in_a_process_of_their_own():
    facts = footprint.measure(PATH, device="cpu", mode="fast")
    assert 0 < facts["load_s"] <= facts["load_to_first_token_s"] < 60
    assert 0.01 < facts["resident_after_load_gb"] <= facts["resident_gb"] < 2
    with pytest.raises(RuntimeError, match="nowhere"):
        footprint.measure("/nowhere/at/all.gguf", device="cpu")


def test_cases_name_what_they_time():
    wanted = speed.cases(512, 32, [0, 4096], [1, 16])
    assert [case.rows for case in wanted] == [512, 512, 512, 1, 1, 16, 16]
    engine = SimpleNamespace(head_start=IdEngine.head_start)
    for case in wanted:
        prompts = [np.zeros(max(case.depth, 4), np.int32)] * case.batch
        assert speed.context_needed([case]) >= case.depth + case.tokens + engine.head_start(prompts)
