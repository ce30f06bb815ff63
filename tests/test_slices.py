"""V10: slices of the most significant bits; the second rule of cross-bit evaluation, kept apart from the first."""

from io import BytesIO
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import ROOT, blobs_dataset, image_sets, make_trainer, plain_recipe, reported

from oscillations.core.bits import REQUANTIZE, SLICE, grid_of, largest_code
from oscillations.engine.crossbit import accuracies
from oscillations.engine.quantizer import quantize
from oscillations.engine.slices import sliced, sliced_codes
from oscillations.records.identity import evaluation_key
from oscillations.records.rows import CHECK
from oscillations.report import acceptance
from oscillations.report.results import MEASUREMENTS, Results
from oscillations.report.tables.cross_bit import both_rules, shown
from oscillations.study import reading as studies

SYMMETRIC = torch.arange(-127.0, 128)
FULL = torch.arange(-128.0, 128)
CODES = torch.tensor([127.0, -121, 79, 64, 43, 33, 15, -6, -62, -65])
GOLDEN = {
    (4, "round"): (7, -7, 5, 4, 3, 2, 1, 0, -4, -4), (4, "floor"): (7, -8, 4, 4, 2, 2, 0, -1, -4, -5),
    (3, "round"): (3, -3, 2, 2, 1, 1, 0, 0, -2, -2), (3, "floor"): (3, -4, 2, 2, 1, 1, 0, -1, -2, -3),
    (2, "round"): (1, -1, 1, 1, 1, 1, 0, 0, -1, -1), (2, "floor"): (1, -2, 1, 1, 0, 0, 0, -1, -1, -2),
    (4, "extra"): (8, -8, 5, 4, 3, 2, 1, 0, -4, -4), (2, "extra"): (2, -2, 1, 1, 1, 1, 0, 0, -1, -1),
}  # fmt: skip
WIDTHS = [2, 3, 4, 5, 6, 7]


# -- codes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits, how", GOLDEN)
def test_v10_golden_codes(bits, how):
    assert sliced_codes(CODES, 8, bits, how=how).tolist() == list(GOLDEN[bits, how])


@pytest.mark.parametrize("grid, codes", [("sym_odd", SYMMETRIC), ("lsq_full", FULL), ("mid_rise", FULL)])
@pytest.mark.parametrize("how", ["round", "extra", "floor"])
@pytest.mark.parametrize("tie", ["half_even", "half_up"])
def test_v10_all_bits_are_the_codes_themselves(grid, codes, how, tie):
    assert torch.equal(sliced_codes(codes, 8, 8, grid, tie, how), codes)


@pytest.mark.parametrize("bits", WIDTHS)
def test_v10_number_of_levels(bits):
    limit = largest_code(bits)
    levels = {how: sliced_codes(SYMMETRIC, 8, bits, how=how).unique().tolist() for how in ("round", "extra", "floor")}
    assert levels["round"] == list(range(-limit, limit + 1))
    assert levels["extra"] == list(range(-limit - 1, limit + 2))
    assert levels["floor"] == list(range(-limit - 1, limit + 1))
    for grid in ("lsq", "lsq_full", "mid_rise"):
        ends = grid_of(grid, bits)
        assert sliced_codes(FULL, 8, bits, grid).unique().tolist() == list(range(ends.low, ends.high + 1))


@pytest.mark.parametrize("bits", WIDTHS)
def test_v10_rounding_is_odd_and_truncation_is_too_low(bits):
    for how in ("round", "extra"):
        assert torch.equal(sliced_codes(-SYMMETRIC, 8, bits, how=how), -sliced_codes(SYMMETRIC, 8, bits, how=how))
    bias = (sliced_codes(FULL, 8, bits, "lsq_full", how="floor") - FULL / 2 ** (8 - bits)).mean()
    assert bias == -(1 - 2 ** (bits - 8)) / 2


def test_v10_ties_are_the_runs():
    halves = torch.tensor([8.0, 24, 40, -8, -24, -40])
    assert sliced_codes(halves, 8, 4).tolist() == [0, 2, 2, 0, -2, -2]
    assert sliced_codes(halves, 8, 4, tie="half_up").tolist() == [1, 2, 3, 0, -1, -2]


@pytest.mark.parametrize("tie", ["half_even", "half_up"])
@pytest.mark.parametrize("how", ["round", "extra", "floor"])
def test_v10_slices_of_mid_rise_nest(tie, how):
    for wide in WIDTHS:
        for narrow in range(2, wide):
            twice = sliced_codes(sliced_codes(FULL, 8, wide, "mid_rise", tie, how), wide, narrow, "mid_rise", tie, how)
            assert torch.equal(twice, sliced_codes(FULL, 8, narrow, "mid_rise", tie))
    rounded_twice = sliced_codes(sliced_codes(SYMMETRIC, 8, 4), 4, 2)
    assert not torch.equal(rounded_twice, sliced_codes(SYMMETRIC, 8, 2))


@pytest.mark.parametrize("bits", WIDTHS)
def test_v10_a_slice_of_mid_rise_is_the_weights_own_code(bits):
    steps = torch.arange(-128 * 4, 128 * 4) / 4  # of 8 bits; every fourth is a threshold
    own = (steps / 2 ** (8 - bits)).floor()
    assert torch.equal(sliced_codes(steps.floor(), 8, bits, "mid_rise", "half_up"), own)


# -- weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("tie", ["half_even", "half_up"])
def test_v10_the_error_is_at_most_half_a_step_of_each_grid(bits, tie):
    step8 = 2.0**-7  # so that nothing here is rounded by the processor
    weight = torch.arange(-127 * 8, 127 * 8 + 1) / 8 * step8
    step = 2 ** (8 - bits) * step8
    quantized = sliced(weight, bits, tie)
    inside = weight.abs() <= (largest_code(bits) + 0.5) * step
    assert ((quantized - weight).abs()[inside] <= step / 2 + step8 / 2).all()
    assert quantized.abs().max() == largest_code(bits) * step
    assert torch.equal(sliced(weight, 8, tie), quantize(weight, 8, tie))


def test_slices_cover_less_of_the_range_and_have_less_error():
    """What the table's caption says."""
    weight = torch.randn(100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for bits, covered, less in ((4, 88, (0.1, 0.3)), (3, 76, (0.3, 0.5)), (2, 50, (0.4, 0.6))):
        by_slice, by_max = sliced(weight, bits), quantize(weight, bits)
        assert round(100 * (by_slice.max() / weight.abs().max()).item()) == covered
        ratio = ((by_slice - weight).square().mean() / (by_max - weight).square().mean()).item()
        assert less[0] < 1 - ratio < less[1]


def test_channels_have_their_own_codes():
    weight = torch.tensor([[1.0, -0.6, 0.3], [0.1, -0.06, 0.03]])
    rows = torch.stack([sliced(row, 3) for row in weight])
    assert torch.equal(sliced(weight, 3, per_channel=True), rows)
    assert not torch.equal(sliced(weight, 3), rows)


# -- networks ----------------------------------------------------------------------------------------------

METHODS = [
    {"name": "baseline"}, {"name": "qat", "bits": 3, "tie": "half_up"}, {"name": "qat", "bits": 3, "per_channel": True},
    {"name": "lsq", "bits": 3, "grid": "lsq"}, {"name": "aoq", "bits": 3}, {"name": "statsq", "bits": 3},
]  # fmt: skip


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_network_holds_slices_of_its_latent_weights(method):
    about, tensors = blobs_dataset()
    recipe = plain_recipe() | {"method": method}
    sets = image_sets(about, tensors, recipe, torch.device("cpu"))
    network = make_trainer(recipe, 0, about, sets, torch.device("cpu")).network
    tie = method.get("tie", "half_up" if method["name"] == "aoq" else "half_even")
    per_channel = method["name"] == "statsq" or "per_channel" in method
    latent = [parameter.data.clone() for parameter in network.parameters]
    for bits in (2, 3, 4):
        with network.at(bits, SLICE):
            for parameter, weight in zip(network.parameters, latent):
                assert torch.equal(parameter.data, sliced(weight, bits, tie, per_channel))
            assert network.quantizer is None or not network.quantizer.in_use
    assert network.weights(32, SLICE) is None
    rows = {rule: accuracies(network, sets, recipe["eval_bits"], True, rule) for rule in (REQUANTIZE, SLICE)}
    assert [row["eval_bits"] for row in rows[REQUANTIZE]] == [32, 2, 3, 4, 8]
    assert [row["eval_bits"] for row in rows[SLICE]] == [2, 3, 4]


def test_layers_of_a_width_of_their_own_are_sliced_at_that():
    about, tensors = blobs_dataset()
    recipe = plain_recipe() | {"method": {"name": "qat", "bits": 3}, "first_last_bits": 8}
    sets = image_sets(about, tensors, recipe, torch.device("cpu"))
    network = make_trainer(recipe, 0, about, sets, torch.device("cpu")).network
    first, second, *_, last = network.weights(2, SLICE)
    latent = network.parameters
    for found, parameter, bits in ((first, latent[0], 8), (second, latent[1], 2), (last, latent[-1], 8)):
        assert torch.equal(found, sliced(parameter.data, bits))
    assert torch.equal(first, network.weights(2)[0])


def test_the_rules_have_keys_of_their_own():
    record = {"recipe": plain_recipe(), "checkpoint_sha256": "c", "data_sha256": "d"}
    assert evaluation_key(record) == evaluation_key(record, REQUANTIZE) != evaluation_key(record, SLICE)


# -- what is measured --------------------------------------------------------------------------------------


@pytest.fixture
def measured():
    """Three runs at four widths, two of them by slices, too; and the study, which asks for both."""
    study, variants = studies.load(ROOT / "params/methods-quick.yaml")
    about = dict.fromkeys(MEASUREMENTS) | {"split": "test", "bn": "keep", "status": "done", "best_epoch": 1}
    about |= {"experiment": "mlp5-scratch", "variant": "qat-3bit", "method": "qat", "train_bits": 3}
    rows = []
    for seed in range(3):
        about |= {"seed": seed, "run": f"results/methods-quick/runs/mlp5-scratch/qat-3bit/seed{seed}"}
        rows += [about | {"eval_bits": bits, "accuracy": 40.0 + seed, "rule": REQUANTIZE} for bits in (32, 2, 3, 4)]
        rows += [about | {"eval_bits": bits, "accuracy": 70.0 + seed, "rule": SLICE} for bits in (2, 3, 4) if seed < 2]
    update = {"cross_bit": [REQUANTIZE, SLICE]}
    return study.model_copy(update=update), variants, pd.DataFrame(rows, columns=MEASUREMENTS)


def test_slices_are_apart_from_all_else(measured):
    table = measured[2]
    found, before = Results("x", table), table[table.rule == REQUANTIZE]
    assert sorted(found.evaluations.accuracy) == sorted([40.0, 41, 42] * 4)
    assert sorted(found.slices.accuracy) == [70, 70, 70, 71, 71, 71]
    for unnamed in (before.drop(columns="rule"), before.assign(rule=None), before.assign(rule=float("nan"))):
        assert Results("x", unnamed).evaluations.accuracy.tolist() == found.evaluations.accuracy.tolist()
        assert Results("x", unnamed).slices.empty


def test_the_table_shows_both_rules_of_the_same_runs(measured):
    report = reported(*measured)
    rows = both_rules(report.results)
    assert rows.eval_bits.tolist() == [2, 3, 4]
    assert rows[["requantize", "slice", "n"]].drop_duplicates().to_numpy().tolist() == [[40.5, 70.5, 2]]
    table = shown(report, rows)
    (row,) = table.rows
    assert row.cells == {
        "Variant": "mlp5-scratch/qat-3bit", "ternary, re-quantized": "40.50", "ternary, slice": "70.50",
        "3-bit, re-quantized": "40.50", "3-bit, slice": "70.50", "4-bit, re-quantized": "40.50", "4-bit, slice": "70.50", "n": "2",
    }  # fmt: skip
    assert "compare methods within one" in table.title
    assert any("smaller, and so is the squared error" in note for note in table.notes)
    paths = [path for missing in table.missing for path in missing.variants]
    assert sorted([*paths, "mlp5-scratch/qat-3bit"]) == sorted(variant.path for variant in report.variants)


def test_a_study_of_which_no_slice_is_evaluated_yet_has_a_table_of_what_is_left(measured):
    study, variants, table = measured
    report = reported(study, variants, table[table.rule == REQUANTIZE])
    empty = shown(report, both_rules(report.results))
    assert empty.rows == [] and sum(len(missing.cells) for missing in empty.missing) == len(variants)


def test_an_acceptance_reads_no_slices(tmp_path):
    table = pd.read_csv(ROOT / "results/paper-jpeg/measurements.csv")
    table = table[(table.variant == "qat-3bit") & (table.split == "test")]
    slices = table[table.eval_bits == 3].assign(accuracy=1.0, rule=SLICE)
    read = []
    for rows in (table, pd.concat([table.assign(rule=REQUANTIZE), slices])):
        rows.to_csv(tmp_path / "measurements.csv", index=False)
        read.append(acceptance.read_runs(tmp_path))
    assert len(read[0]) and read[0].accuracy.tolist() == read[1].accuracy.tolist()


# -- under the real rules ----------------------------------------------------------------------------------

REPORT = {"collect", "oscillations", "tables", "figures", "films", "claims", "findings", "site", "all"}
OTHERS = ("measurements.csv", "evaluations.csv", "index.html", "making.html", "README.md", "provenance.json")


@pytest.mark.slow
def test_slices_asked_for_later_plan_evaluations_and_keep_all_else(finished):
    results = finished.folder / "results/tiny"

    def written(name):
        return {path.relative_to(results): path.read_bytes() for path in sorted(results.rglob(name))}

    measured, evaluated = (pd.read_csv(results / "measurements.csv"), written("evaluations.csv"))
    others = {path: content for path, content in written("*.*").items() if path.name not in OTHERS}
    pictures = {path: path.read_bytes() for path in (finished.folder / "figures/tiny").glob("*.png")}
    assert "rule" not in measured and all(b"rule" not in text for text in evaluated.values())

    finished.edit("params/tiny.yaml", "seeds: [0, 1]\n", "seeds: [0, 1]\ncross_bit: [requantize, slice]\n")
    planned = finished.planned()
    assert planned.pop("evaluate") == 2 and set(planned) <= REPORT
    finished.snakemake("all")
    assert finished.planned() == {}

    for path, before in evaluated.items():
        table = pd.read_csv(results / path, dtype=str, keep_default_na=False).drop(columns=CHECK)  # of other columns
        old, new = (table[table.rule == rule].drop(columns="rule") for rule in (REQUANTIZE, SLICE))
        before = pd.read_csv(BytesIO(before), dtype=str, keep_default_na=False).drop(columns=CHECK)
        pd.testing.assert_frame_equal(old.reset_index(drop=True), before)
        assert set(new.run) == set(old.run) and set(new.eval_bits) == {"2", "3", "4"} and set(new.bn) == {"keep"}
        assert not set(new.key) & set(old.key)
    table = pd.read_csv(results / "measurements.csv")
    pd.testing.assert_frame_equal(
        table[table.rule == REQUANTIZE].drop(columns="rule").reset_index(drop=True), measured, check_dtype=False
    )
    slices = table[table.rule == SLICE]
    assert len(slices) == 6 * 2 * 3 and set(slices.split) == {"test"}
    assert set(slices.grid) == {"sym_odd"} and (slices.levels == 2**slices.eval_bits - 1).all()
    assert set(slices.method) == {"ptq", "qat", "osciquant"}

    now = written("*.*")
    compared = {path for path in others if path.name.startswith("comparison-")}  # with a column more
    assert {path: now[path] for path in others if path not in compared} == {
        path: others[path] for path in others if path not in compared
    }
    table = pd.read_csv(results / "tables/comparison-mlp5.csv").drop(columns=["worst_slice", "worst_slice_std"])
    pd.testing.assert_frame_equal(table, pd.read_csv(BytesIO(others[Path("tables/comparison-mlp5.csv")])))
    assert {path: path.read_bytes() for path in pictures} == pictures
    added = {path.as_posix() for path in set(now) - set(others) if path.name not in OTHERS}
    assert added == {f"tables/cross-bit-rules.{suffix}" for suffix in ("csv", "md", "tex", "json")}
    page = (results / "making.html").read_text()
    assert 'id="cross-bit-rules">' in page and "to be compared within one rule only" in page

    finished.edit("params/tiny.yaml", "cross_bit: [requantize, slice]\n", "")
    finished.snakemake("results/tiny/measurements.csv")
    assert written("evaluations.csv") == evaluated
    pd.testing.assert_frame_equal(pd.read_csv(results / "measurements.csv"), measured)


@pytest.mark.slow
def test_slices_that_are_not_evaluated_yet_are_said_aloud(finished):
    finished.edit("params/tiny.yaml", "seeds: [0, 1]\n", "seeds: [0, 1]\ncross_bit: [requantize, slice]\n")
    output = finished.cli("collect", "--study", "tiny")
    assert "mlp5-scratch: 8 runs have no current evaluation: nothing of them is shown by slice" in output
