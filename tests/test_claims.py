"""Verdicts: the statistics against worked values, and every claim on made-up runs whose answer is known."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, reported
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW, ttost_paired

from oscillations.report import claims as judged
from oscillations.report import estimates as stats
from oscillations.report.claims import measures
from oscillations.report.claims.evidence import Claim, Published, Sample, combine
from oscillations.report.estimates import Above, Below, ByP, StdAbove, Within
from oscillations.report.results import MEASUREMENTS
from oscillations.study import reading as studies
from oscillations.study.report_schema import Claims

CLAIMS = [f"C{i}" for i in range(1, 20)]

# -- statistics ------------------------------------------------------------------------------------------------


def test_mean_interval_golden():
    """Mean 2, standard error 1 / sqrt(3), t(0.975, 2) = 4.3026527."""
    found = stats.mean_interval(np.array([1.0, 2.0, 3.0]))
    assert (found.n, found.value) == (3, 2.0)
    assert found.high - 2 == pytest.approx(4.3026527 / math.sqrt(3), rel=1e-6)
    assert found.low == pytest.approx(2 - (found.high - 2))


def test_fewer_than_three_values_have_no_interval():
    assert stats.mean_interval(np.array([])).n == 0
    for few in ([5.0], [5.0, 6.0]):
        assert math.isnan(stats.mean_interval(np.array(few)).low)
        assert math.isnan(stats.std_interval(np.array(few)).low)
    same = stats.mean_interval(np.full(9, 4.0))
    assert (same.value, same.low, same.high) == (4.0, 4.0, 4.0)
    assert verdict(same, Above(3.0)) == "supported"
    assert verdict(same, Above(5.0)) == "contradicted"
    assert verdict(same, Within(3.0)) == "contradicted"


def samples(count):
    """So many small samples of differences, of all sizes and distances from 0 that claims have."""
    generator = np.random.default_rng(0)
    for place in range(count):
        yield generator.normal(generator.uniform(-3, 3), generator.uniform(0.2, 3), 3 + place % 8)


@pytest.mark.parametrize("values", list(samples(20)), ids=range(20))
def test_p_values_are_those_of_scipy_and_statsmodels(values):
    found, others = stats.mean_interval(values), DescrStatsW(values)
    assert (found.low, found.high) == pytest.approx(others.tconfint_mean(0.05))
    for bound in (0.0, 1.5):
        greater, less = (others.ttest_mean(bound, way)[1] for way in ("larger", "smaller"))
        above, below = Above(bound)(found), Below(bound)(found)
        assert (above.support, above.against) == pytest.approx((min(1, 2 * greater), min(1, 2 * less)))
        assert (below.support, below.against) == (above.against, above.support)
    within = Within(2.0)(found)
    equivalent, *_ = ttost_paired(values, np.zeros_like(values), -2.0, 2.0)
    outside = min(others.ttest_mean(-2.0, "smaller")[1], others.ttest_mean(2.0, "larger")[1])
    assert (within.support, within.against) == pytest.approx((equivalent, min(1, 2 * outside)))


def test_welch_is_that_of_scipy():
    first, second = np.array([1.0, 2.0, 4.0, 3.5]), np.array([0.5, 0.1, 2.2])
    expected = scipy_stats.ttest_ind(first, second, equal_var=False)
    sides = [(side.std(ddof=1), len(side)) for side in (first, second)]
    found = stats.welch(7, first.mean() - second.mean(), sides)
    interval = expected.confidence_interval()
    assert (found.low, found.high, found.freedom) == pytest.approx((interval.low, interval.high, expected.df))
    assert math.isnan(stats.welch(3, 1.0, []).low)


def test_std_interval_golden():
    """Standard deviation 1 of three values: chi2(0.975, 2) = 7.3777589, chi2(0.025, 2) = 0.0506356."""
    found = stats.std_interval(np.array([1.0, 2.0, 3.0]))
    assert found.value == 1
    assert found.low == pytest.approx(math.sqrt(2 / 7.3777589), rel=1e-6)
    assert found.high == pytest.approx(math.sqrt(2 / 0.0506356), rel=1e-5)
    assert StdAbove(found.low)(found).support == pytest.approx(0.05)
    assert StdAbove(found.high)(found).against == pytest.approx(0.05)


def test_variance_ratio_weighs_every_group_alike():
    """Variances 1 / 1 and 4 / 1: the geometric mean of the ratios is 2, whatever the size of a group's own."""
    above, below = [np.array([1.0, 2, 3]), np.array([0.0, 2, 4])], [np.array([7.0, 8, 9]), np.array([1.0, 2, 3])]
    found = stats.variance_ratio(above, below)
    assert (found.n, found.value) == (6, pytest.approx(2))
    error = math.sqrt(4 * math.pi**2 / 6) / 2  # trigamma(1) = pi^2 / 6 of each of four variances
    assert found.p == pytest.approx(2 * scipy_stats.norm.sf(math.log(2) / error))
    assert (found.low, found.high) == pytest.approx(
        (2 / math.exp(1.95996398 * error), 2 * math.exp(1.95996398 * error))
    )
    large = [[group * factor for group, factor in zip(side, (1, 100))] for side in (above, below)]
    assert stats.variance_ratio(*large) == found or stats.variance_ratio(*large).value == pytest.approx(2)
    assert math.isnan(stats.variance_ratio([], []).p)


def test_variance_ratio_keeps_its_level():
    """Under equal variances about 5 % of p values lie below 5 %, for two cells of five seeds."""
    generator = np.random.default_rng(1)
    draws = generator.normal(size=(2000, 2, 2, 5))
    low = [stats.variance_ratio(list(above), list(below)).p < 0.05 for above, below in draws]
    assert 0.035 < np.mean(low) < 0.065


def test_trend_golden():
    """Three seeds in perfect order over three levels: one of 3!^3 = 216 arrangements, so p = 2 / 216."""
    rising = np.array([[1.0, 2, 3]] * 3)
    assert stats.trend(rising).p == pytest.approx(2 / 216)
    assert stats.trend(rising).value == pytest.approx(1)
    assert stats.trend(-rising).value == pytest.approx(-1)
    assert stats.trend(-rising).p == pytest.approx(2 / 216)
    mixed = np.array([[1.0, 2, 3], [1, 3, 2], [3, 1, 2]])
    expected = np.mean([scipy_stats.spearmanr([1, 2, 3], row).statistic for row in mixed])
    assert stats.trend(mixed).value == pytest.approx(expected)
    assert verdict(stats.trend(rising), ByP()) == "supported"
    assert verdict(stats.trend(-rising), ByP()) == "contradicted"
    assert verdict(stats.trend(-rising), ByP(sign=-1)) == "supported"
    assert verdict(stats.trend(mixed), ByP()) == "inconclusive"


def test_two_levels_or_one_seed_are_no_trend():
    assert verdict(stats.trend(np.array([[1.0, 2]] * 5)), ByP()) == "inconclusive"
    assert math.isnan(stats.trend(np.array([[1.0, 2, 3]])).p)


def verdict(found, test, *others):
    """The verdict of one comparison, alone or among others."""
    return stats.verdicts([(one, test(one)) for one in (found, *others)])[0]


@pytest.mark.parametrize("count", [1, 2, 7, 24])
def test_holm_is_that_of_statsmodels(count):
    values = np.random.default_rng(count).uniform(0, 0.1, count)
    assert stats.holm(list(values)) == pytest.approx(multipletests(values, method="holm")[1])


def test_one_uncorrected_contradiction_of_many_is_none():
    """p = .02 contradicts alone, and not as one of twenty; support is asked of every comparison, uncorrected."""
    low = stats.student(5, -1.0, 0.27, 4)
    assert Above()(low).against == pytest.approx(0.02, abs=0.002)
    fine = stats.student(5, 1.0, 0.27, 4)
    assert verdict(low, Above()) == "contradicted"
    assert verdict(low, Above(), *[fine] * 19) == "inconclusive"
    assert verdict(fine, Above(), *[fine] * 19) == "supported"


def test_a_margin_decides_only_by_more_than_the_interval_is_known():
    """Half width 1 with 4 degrees of freedom is known to 1 / sqrt(8) = .354; a bound of 0 is no margin."""
    found = stats.student(5, 0.0, 1 / scipy_stats.t.ppf(0.975, 4), 4)
    assert found.high == pytest.approx(1)
    assert verdict(found, Below(1.40)) == "supported"
    assert verdict(found, Below(1.30)) == "inconclusive"
    assert Below(1.30)(found).turns_at == pytest.approx(1)
    assert stats.too_near(found, Below(1.30)(found))
    just = stats.student(5, 1.01, found.error, 4)
    assert verdict(just, Above()) == "supported"


def test_within_says_on_which_side():
    """C2 of MLP5 at 4 bits: within 2 points, and below."""
    found = stats.mean_interval(np.array([-0.9, -0.6, -1.2, -0.8, -1.0]))
    result = Within(2.0)(found)
    assert (verdict(found, Within(2.0)), result.note) == ("supported", "within the margin, and below")
    half = scipy_stats.t.ppf(0.95, 4) * found.error
    assert result.turns_at == pytest.approx(-0.9 - half)
    assert Within(2.0)(stats.mean_interval(np.array([-0.5, 0.4, 0.1]))).note == ""


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([], "not run"), (["not run"], "not run"), (["supported", "not run"], "supported"),
        (["supported", "inconclusive"], "inconclusive"), (["supported", "contradicted"], "contradicted"),
        (["not judged", "not run"], "not judged"), (["not judged", "supported"], "supported"),
        (["not judged", "inconclusive"], "inconclusive"),
    ],
)  # fmt: skip
def test_overall(verdicts, expected):
    assert stats.overall(verdicts) == expected


def test_differences_are_paired_by_the_seeds_both_have():
    a = Sample(pd.Series({0: 5.0, 1: 7.0, 2: 9.0}), {0: "a0", 1: "a1", 2: "a2"})
    b = Sample(pd.Series({2: 1.0, 1: 2.0, 3: 0.0}), {1: "b1", 2: "b2", 3: "b3"}, fitted=True)
    found = a - b
    assert found.values.to_dict() == {1: 5.0, 2: 8.0}
    assert found.runs == {1: "a1 b1", 2: "a2 b2"}
    assert found.fitted
    assert not len(combine([], max).values)


def test_a_gaussian_is_never_more_often_near_a_threshold_than_uniform_weights():
    thresholds = np.arange(-50, 50) + 0.5
    shares = []
    for sigma in np.geomspace(0.05, 10, 200):
        cumulative = scipy_stats.norm(scale=sigma).cdf
        shares.append((cumulative(thresholds + 0.05) - cumulative(thresholds - 0.05)).sum())
    assert max(shares) <= Claims().uniform_near + 1e-4


# -- made-up runs ----------------------------------------------------------------------------------------------


@pytest.fixture
def study():
    """The quick study, with lambda sweeps of all three models."""
    found = studies.load(ROOT / "params/quick.yaml")[0]
    tables = found.tables | {"table4": ["resnet18-lambda", "mlp5-lambda"], "table5": ["vit-tiny-lambda"]}
    return found.model_copy(update={"tables": tables})


MODELS = {
    "resnet18-scratch": ("resnet18", "scratch"),
    "vit-tiny-finetune": ("vit-tiny", "finetune"),
    "mlp5-scratch": ("mlp5", "scratch"),
    "mlp5-lambda": ("mlp5", "sweep"),
    "resnet18-lambda": ("resnet18", "sweep"),
    "vit-tiny-lambda": ("vit-tiny", "sweep"),
}
EPOCHS = {"baseline": 10, "ptq": 10, "qat": 20, "osciquant": 21}
NOISE = (0.0, 0.1, 0.25)


def measured(accuracy, experiment="resnet18-scratch", seeds=3, lam=1.0, spread=None):
    """Measurements from {(method, train_bits, eval_bits): accuracy}; QAT's noise is twice that of the others.

    ``spread``: {(method, train_bits, eval_bits): accuracies of the seeds} instead of noise.
    """
    model, setting = MODELS[experiment]
    rows = []
    for (method, train_bits, eval_bits), value in accuracy.items():
        for seed in range(seeds):
            noise = NOISE[seed % len(NOISE)] * (2 if method == "qat" else 1)
            exact = (spread or {}).get((method, train_bits, eval_bits))
            trained = "baseline" if method == "ptq" else f"{method}-{train_bits}-{lam:g}"
            row = dict.fromkeys(MEASUREMENTS)
            row |= {
                "experiment": experiment, "model": model, "setting": setting, "method": method, "seed": seed,
                "train_bits": train_bits, "eval_bits": eval_bits, "split": "test", "bn": "keep", "status": "done",
                "accuracy": exact[seed] if exact else value + noise, "best_epoch": EPOCHS[method] + seed, "lr": 1e-3,
                "lambda": lam if method == "osciquant" else math.nan, "variant": trained,
                "run": f"results/x/runs/{experiment}/{trained}/seed{seed}",
            }  # fmt: skip
            rows.append(row)
    return pd.DataFrame(rows, columns=MEASUREMENTS)


def resnet_like():
    """What the paper claims of ResNet-18, in round numbers."""
    values = {("baseline", 32, 32): 88.0}
    values |= {("ptq", 32, bits): accuracy for bits, accuracy in ((2, 10.0), (3, 60.0), (4, 80.0), (8, 88.0))}
    for trained, osci, qat in ((2, 60.0, 77.0), (3, 86.0, 86.5), (4, 87.5, 87.5)):
        for bits in (2, 3, 4, 8, 32):
            values["osciquant", trained, bits] = {2: 20.0, 3: 85.0, 4: 87.0, 8: 88.0, 32: 88.0}[bits]
            values["qat", trained, bits] = 10.0 if trained < 4 else 85.0
        values["osciquant", trained, trained] = osci
        values["qat", trained, trained] = qat
    return values


def vit_like():
    """The same of ViT-Tiny."""
    values = {("baseline", 32, 32): 96.0}
    values |= {("ptq", 32, bits): accuracy for bits, accuracy in ((2, 10.0), (3, 12.0), (4, 20.0), (8, 96.0))}
    for trained, osci, qat in ((2, 13.0, 73.0), (3, 88.5, 88.0), (4, 95.0, 95.0)):
        for bits in (2, 3, 4, 8, 32):
            values["osciquant", trained, bits] = {2: 10.0, 3: 12.5, 4: 95.0, 8: 96.0, 32: 96.0}[bits]
            values["qat", trained, bits] = {2: 11.0, 3: 87.0, 4: 95.0}[trained]
        values["osciquant", trained, trained] = osci
        values["qat", trained, trained] = qat
    return values


UNSTABLE = {("osciquant", 2, 4): (20.0, 60.0, 85.0), ("osciquant", 4, 3): (50.0, 70.0, 90.0)}


def found(study, measurements=None, epochs=None):
    measurements = pd.DataFrame(columns=MEASUREMENTS) if measurements is None else measurements
    claims = judged.evaluate(reported(study, [], measurements, epochs))
    return {claim.name: claim for claim in claims}


def verdicts(*arguments):
    return {name: claim.verdict for name, claim in found(*arguments).items()}


OF_RESNET = ("C1", "C2", "C3", "C4", "C5", "C6", "C7", "C11", "C12")
OF_VIT = ("C1", "C3", "C4", "C5", "C6", "C11", "C12", "C14")


def without_spreads(claims):
    """Two cells of three seeds are too few to compare C2's spreads."""
    claims["C2"].added = [c for c in claims["C2"].added if not c.text.startswith("variance")]
    return {name: claim.verdict for name, claim in claims.items()}


def test_what_the_paper_says_supports_the_papers_claims(study):
    resnet = without_spreads(found(study, measured(resnet_like())))
    assert {name: resnet[name] for name in OF_RESNET} == dict.fromkeys(OF_RESNET, "supported")
    assert resnet["C14"] == "not run"
    vit = verdicts(study, measured(vit_like(), "vit-tiny-finetune", spread=UNSTABLE))
    assert {name: vit[name] for name in OF_VIT} == dict.fromkeys(OF_VIT, "supported")
    assert vit["C7"] == "not run"


@pytest.mark.parametrize(
    ("claim", "change"),
    [
        ("C1", {("osciquant", 3, 3): 50.0}),
        ("C2", {("osciquant", 4, 4): 80.0}),
        ("C3", {("osciquant", 2, 2): 79.0}),
        ("C4", {("osciquant", 2, 32): 80.0}),
        ("C5", {("qat", 3, 32): 70.0}),
        ("C6", {("osciquant", 4, 3): 50.0}),
        ("C7", {("osciquant", 2, 3): 50.0}),
        ("C11", {("qat", 2, 8): 80.0}),
        ("C11", {("osciquant", 2, 8): 90.0}),
    ],
)
def test_the_opposite_contradicts_exactly_that_claim(study, claim, change):
    assert verdicts(study, measured(resnet_like() | change))[claim] == "contradicted"


@pytest.mark.parametrize(
    ("claim", "change"),
    [("C5", {("qat", 3, 4): 11.0}), ("C14", {("osciquant", 2, 3): 60.0}), ("C14", {("osciquant", 2, 8): 80.0})],
)
def test_the_opposite_contradicts_what_is_claimed_of_vit(study, claim, change):
    assert verdicts(study, measured(vit_like() | change, "vit-tiny-finetune", spread=UNSTABLE))[claim] == "contradicted"


def test_stable_accuracies_contradict_instability(study):
    vit = verdicts(study, measured(vit_like(), "vit-tiny-finetune"))
    assert vit["C6"] == vit["C14"] == "contradicted"


def test_c12_epochs(study):
    table = measured(resnet_like())
    fast = table.assign(best_epoch=table.best_epoch.where(table.method != "osciquant", 9 + table.seed))
    assert verdicts(study, fast)["C12"] == "contradicted"
    slow = table.assign(best_epoch=table.best_epoch.where(table.method != "osciquant", 60 + table.seed))
    assert verdicts(study, slow)["C12"] == "contradicted"


def test_two_seeds_decide_nothing(study):
    resnet = verdicts(study, measured(resnet_like(), seeds=2))
    assert {resnet[name] for name in OF_RESNET} == {"inconclusive"}
    vit = found(study, measured(vit_like(), "vit-tiny-finetune", 2, spread=UNSTABLE))
    assert vit["C14"].verdict == "inconclusive"
    assert {c.verdict for name in CLAIMS for c in vit[name].comparisons} == {"not run", "not judged", "inconclusive"}


def test_nothing_run_says_so_and_lists_what_would(study):
    claims = found(study)
    assert list(claims) == CLAIMS
    assert {claim.verdict for claim in claims.values()} == {"not run"}
    assert {c.verdict for claim in claims.values() for c in claim.comparisons} == {"not run"}
    empty = [name for name, claim in claims.items() if not claim.comparisons]
    assert empty == ["C16"]
    assert "study methods" in claims["C16"].reason


def test_a_study_without_the_papers_tables_has_none_of_its_claims(study):
    assert found(study.model_copy(update={"tables": {}}), measured(resnet_like())) == {}


def test_a_diverged_run_counts_for_nothing(study):
    table = measured(resnet_like())
    table.loc[table.seed == 2, "status"] = "diverged"
    assert verdicts(study, table)["C1"] == "inconclusive"


def test_fitted_cells_count_for_no_claim(study):
    fitted = study.model_copy(
        update={"fitted": [("resnet18", "scratch", "baseline", 32), ("resnet18", "scratch", "ptq", 3)]}
    )
    table = measured(resnet_like() | {("osciquant", 3, 3): 50.0})  # worse than fitted PTQ
    claims = found(fitted, table)
    of_c1 = {c.text: c.verdict for c in claims["C1"].comparisons if c.verdict != "not run"}
    assert list(of_c1.values()) == ["supported", "not judged", "supported"]
    assert claims["C1"].verdict == "supported"
    assert {c.verdict for c in claims["C4"].comparisons} == {"not judged", "not run"}  # all stand on the baseline
    assert claims["C4"].verdict == "not judged"
    assert claims["C4"].scope == ""
    assert [c.verdict for c in claims["C12"].comparisons[9:18]] == ["supported", "not judged", "not judged"] * 3
    assert claims["C3"].verdict == "supported"


def test_every_comparison_names_its_runs(study):
    comparison = found(study, measured(resnet_like()))["C1"].comparisons[3]
    variants = ("baseline", "osciquant-2-1")
    assert comparison.runs == [f"results/x/runs/resnet18-scratch/{v}/seed{s}" for v in variants for s in range(3)]
    assert comparison.estimate.n == 3
    assert comparison.estimate.value == pytest.approx(50)


def test_c2_compares_the_spreads_of_all_cells(study):
    """Six cells of three experiments; QAT's made-up noise is twice OsciQuant's, so the ratio of variances is 1 / 4."""
    frames = [measured(resnet_like(), "resnet18-scratch"), measured(vit_like(), "vit-tiny-finetune")]
    frames += [measured(resnet_like(), "mlp5-scratch")]
    spread = found(study, pd.concat(frames))["C2"].comparisons[-1]
    assert (spread.estimate.n, spread.estimate.value) == (18, pytest.approx(0.25))
    assert spread.verdict == "inconclusive"  # p = .06
    one = found(study, frames[0])["C2"].comparisons[-1]
    assert (one.estimate.n, one.verdict) == (6, "inconclusive")  # too few runs to tell
    logs = [math.log(0.46 / 2.14), math.log(0.59 / 2.57)]  # the published ratios of the same cells
    assert one.published.value == pytest.approx(math.exp(sum(logs)))
    fitted = study.model_copy(update={"fitted": [("mlp5", "scratch", "qat", 3), ("mlp5", "scratch", "qat", 4)]})
    assert found(fitted, pd.concat(frames))["C2"].comparisons[-1].estimate.n == 12


def test_two_cells_can_decide_about_spreads(study):
    """MLP5 alone has two cells: ten seeds of a tenth of the spread are enough, either way."""
    calm, wild = (list(np.random.default_rng(0).normal(80, std, 10)) for std in (0.1, 3.0))
    cells = {("osciquant", bits, bits): calm for bits in (3, 4)} | {("qat", bits, bits): wild for bits in (3, 4)}
    for spread, verdict in (
        (cells, "supported"),
        ({key: wild if values is calm else calm for key, values in cells.items()}, "contradicted"),
    ):
        table = measured(dict.fromkeys(cells, 80.0), "mlp5-scratch", 10, spread=spread)
        assert found(study, table)["C2"].comparisons[-1].verdict == verdict


def test_published_numbers_stand_beside_under_the_same_test(study):
    """Table 1's MLP5 at 3 bits: 48.48 +- 0.29 against 50.53 +- 1.43; 15 against 33 epochs. Both fail their margins."""
    claims = found(study)
    gap = next(c for c in claims["C2"].comparisons if c.text.startswith("MLP5 (scratch), 3-bit"))
    assert (gap.published.value, gap.published.parts) == (pytest.approx(-2.05), (0.29, 1.43))
    assert gap.published_says() == "fails; inconclusive if n = 5"
    expected = scipy_stats.ttest_ind_from_stats(48.48, 0.29, 5, 50.53, 1.43, 5, equal_var=False)
    assert gap.published.estimate(5).freedom == pytest.approx(4.33, abs=0.01)
    assert Above()(gap.published.estimate(5)).against == pytest.approx(expected.pvalue)
    epochs = next(c for c in claims["C12"].comparisons if c.text.startswith("MLP5 (scratch), 3-bit: epochs, |Osci"))
    assert (epochs.published, epochs.published_says()) == (Published(-18.0), "fails")
    flat = next(c for c in claims["C9"].comparisons if c.text.startswith("ResNet-18, 3-bit"))
    assert (flat.published.value, flat.published_says()) == (pytest.approx(3.88), "fails")
    c17 = [c for c in claims["C17"].comparisons if c.published]
    assert len(c17) == 24  # Table 3: two models, three trained widths, four others
    chance = [c.text for c in c17 if c.published_says() == "all near chance"]
    assert "ViT-Tiny (finetune), trained 3-bit, at ternary: OsciQuant - QAT > 0" in chance  # 9.48 against 19.78
    assert not [c.text for c in c17 if "fails" in c.published_says()]


def test_c17_away_from_the_training_width(study):
    claim = found(study, measured(resnet_like() | {("osciquant", 3, 2): 15.0}))["C17"]
    by_text = {c.text: c for c in claim.comparisons}
    assert by_text["ResNet-18 (scratch), trained ternary, at 3-bit: OsciQuant - QAT > 0"].verdict == "supported"
    chance = by_text["ResNet-18 (scratch), trained 3-bit, at ternary: OsciQuant - QAT > 0"]
    assert (chance.verdict, chance.notes) == ("not judged", "all near chance")
    worse = measured(resnet_like() | {("qat", 2, 3): 95.0})
    assert found(study, worse)["C17"].verdict == "contradicted"


def test_the_scope_says_what_a_verdict_is_about(study):
    claims = found(study, measured(resnet_like()))
    assert claims["C1"].scope == "ResNet-18 (scratch): 3 of 11 comparisons"
    assert claims["C17"].scope.endswith("of 32 comparisons, none with a published number")


# -- lambda sweeps ---------------------------------------------------------------------------------------------


def sweep(by_lambda, experiment="resnet18-lambda", bits=3):
    return pd.concat(
        measured({("osciquant", bits, bits): value}, experiment, lam=lam) for lam, value in by_lambda.items()
    )


@pytest.mark.parametrize("experiment", ["resnet18-lambda", "mlp5-lambda"])
def test_c9_flat_and_not_flat(study, experiment):
    flat = dict.fromkeys((0.25, 0.5, 0.75, 1.0, 1.25, 1.5), 90.5) | {1.75: 90.2, 9.0: 10.0}  # 9 is outside the range
    assert verdicts(study, sweep(flat, experiment))["C9"] == "supported"
    assert verdicts(study, sweep(flat | {1.75: 60.0}, experiment))["C9"] == "contradicted"
    some = {lam: flat[lam] for lam in (0.25, 1.0, 1.75)}
    comparison = next(c for c in found(study, sweep(some, experiment))["C9"].comparisons if c.verdict != "not run")
    assert comparison.verdict == "inconclusive"
    assert comparison.notes.startswith("4 of the paper's 7 lambdas have not run; the range of the means, ")
    assert verdicts(study, sweep(some | {1.75: 60.0}, experiment))["C9"] == "contradicted"


def test_c9_collapse_for_a_small_lambda(study):
    collapsing = sweep({0.01: 18.85, 0.5: 85.0, 0.75: 87.0, 1.0: 90.0}, "vit-tiny-lambda")
    collapse = found(study, collapsing)["C9"].comparisons[-1]
    assert "lambda 0.01 minus" in collapse.text
    assert collapse.verdict == "supported"
    assert collapse.estimate.value == pytest.approx(18.85 - 262 / 3)
    steady = sweep({0.01: 86.0, 0.5: 85.0, 0.75: 87.0, 1.0: 90.0}, "vit-tiny-lambda")
    assert found(study, steady)["C9"].comparisons[-1].verdict == "contradicted"


def histories(runs, experiment="resnet18-lambda", bits=3, length=6, **columns):
    """Histories of runs from {(method, lambda): (oscillating share, near-threshold share)}."""
    rows = []
    for (method, lam), (share, near) in runs.items():
        for seed in range(3):
            for epoch in range(1, length + 1 + seed):
                rows.append(
                    {
                        "experiment": experiment, "variant": f"{method}-{bits}-{lam:g}", "model": MODELS[experiment][0],
                        "method": method, "train_bits": bits, "lambda": lam, "lr": 1e-3, "seed": seed, "epoch": epoch, "status": "done",
                        "steps_per_epoch": 10, "weights": 1000, "epoch_nagel": 1000 * share + seed,
                        "iteration_nagel": 10_000 * share + seed, "monitored": -abs(epoch - 3),
                        "near_threshold": near + 0.001 * seed if epoch == 3 else 9.0,
                    }
                    | {name: values[epoch - 1] + NOISE[seed] for name, values in columns.items()}
                )  # fmt: skip
    return pd.DataFrame(rows)


AS_PUBLISHED = {
    ("qat", math.nan): (0.2, 0.12),
    ("osciquant", 0.0): (0.05, 0.08),
    ("osciquant", 0.75): (0.2, 0.15),
    ("osciquant", 1.75): (0.4, 0.20),
}
REVERSED = {key: (0.5 - share, 0.3 - near) for key, (share, near) in AS_PUBLISHED.items()}
ALWAYS_MORE = AS_PUBLISHED | {("osciquant", 0.75): (0.3, 0.15)}


@pytest.mark.parametrize("experiment", ["resnet18-lambda", "mlp5-lambda", "vit-tiny-lambda"])
def test_c8_and_c13_of_every_sweep(study, experiment):
    claims = found(study, None, histories(AS_PUBLISHED, experiment))
    assert claims["C8"].verdict == claims["C13"].verdict == "supported"
    assert sum(c.verdict == "supported" for c in claims["C8"].comparisons) == 6
    assert sum(c.verdict == "supported" for c in claims["C13"].comparisons) == 4
    overshot = found(study, None, histories(ALWAYS_MORE, experiment))["C8"]  # 1.5 times QAT's count at the least, and
    assert overshot.verdict == "inconclusive"  # lambda 0 has fewer than QAT: one between may have as many
    assert overshot.deciding().estimate.value == pytest.approx(1.5, abs=0.01)
    short = {key: (share if key[0] == "qat" else share / 4, near) for key, (share, near) in AS_PUBLISHED.items()}
    assert found(study, None, histories(short, experiment))["C8"].verdict == "contradicted"  # none has half of QAT's
    claims = found(study, None, histories(REVERSED, experiment))
    assert claims["C8"].verdict == claims["C13"].verdict == "contradicted"


def test_c13_reads_the_best_epoch(study):
    claims = found(study, None, histories(AS_PUBLISHED))
    zero = next(c for c in claims["C13"].comparisons if "under lambda 0" in c.text)
    assert zero.estimate.value == pytest.approx(0.081)


def test_c8_uses_only_epochs_that_all_runs_have(study):
    table = histories(AS_PUBLISHED)
    table.loc[table.epoch > 6, ["epoch_nagel", "iteration_nagel"]] = 1e9  # only seeds 1 and 2 have them
    table.loc[table.epoch == 1, ["epoch_nagel", "iteration_nagel"]] = 1e9  # nothing to be opposite to
    claims = found(study, None, table)
    assert claims["C8"].verdict == "supported"
    difference = next(
        c for c in claims["C8"].comparisons if c.text.endswith("QAT - lambda 0, % of the weights per epoch, > 0")
    )
    assert difference.estimate.value == pytest.approx(15)


def test_a_point_in_two_experiments_counts_once(study):
    both = study.model_copy(update={"tables": study.tables | {"table4": ["mlp5-scratch", "mlp5-lambda"]}})
    main = histories({("osciquant", 0.75): (0.2, 0.15), ("qat", math.nan): (0.2, 0.12)}, "mlp5-scratch")
    claims = found(both, None, pd.concat([main, histories(AS_PUBLISHED, "mlp5-lambda")]))
    trend = next(c for c in claims["C8"].comparisons if c.text.startswith("MLP5, 3-bit: count per step grows"))
    assert trend.verdict == "supported"
    assert [run.split("/")[3] for run in trend.runs] == ["mlp5-lambda"] * 6 + ["mlp5-scratch"] * 3


# -- training curves -------------------------------------------------------------------------------------------


def curves(full, quantized, experiment="resnet18-scratch"):
    """Test rows (so that the experiment has run) and histories of OsciQuant at 3 bits."""
    columns = {"val_acc_32": full, "val_acc_3": quantized, "val_acc_4": quantized, "val_acc_8": full}
    table = histories({("osciquant", 1.0): (0.1, 0.1)}, experiment, length=len(full) - 2, **columns)
    return measured({("osciquant", 3, 3): 80.0}, experiment), table


def test_c10_accuracy_at_other_widths_over_training(study):
    """8 bits stay at 80, 4 rise from 50 to 79: their mean rises by 14.5, or falls; 3 is the target."""
    rising = [50, 50, 50, 60, 60, 60, 79, 79, 79, 79, 79]
    measurements, table = curves([80] * 11, rising)
    table.loc[:, ["val_acc_8", "val_acc_4"]] -= table.seed.map(dict(enumerate(NOISE))).to_numpy()[:, None]
    claim = found(study, measurements, table)["C10"]
    assert claim.verdict == "supported"
    assert measures.rise_elsewhere(table[table.seed == 0]) == pytest.approx(14.5)
    assert verdicts(study, *curves([80] * 11, rising[::-1]))["C10"] == "contradicted"
    assert math.isnan(measures.rise_elsewhere(table[:2]))


def test_c18_convergence_at_the_target_first(study):
    """The target is within a point of its best in epoch 2; 4 and 8 bits in epochs 4 and 6."""
    run = pd.DataFrame(
        {"epoch": range(1, 7), "train_bits": 3, "val_acc_3": [50, 79.5, 80, 80, 79, 79], "val_acc_4": [1, 2, 3, 9.5, 10, 9],
         "val_acc_8": [1, 2, 3, 4, 5, 9]}
    )  # fmt: skip
    assert measures.later_elsewhere(1.0)(run) == 3
    assert math.isnan(measures.later_elsewhere(1.0)(run.drop(columns=["val_acc_4", "val_acc_8"])))


def test_c19_one_learning_rate_for_every_lambda(study):
    """Rate 0.1 is the best by 5 points at lambda 1 and 2, and at lambda 2 it may lose."""

    def rates(at_two):
        cells = {(0.1, 1.0): 90.0, (0.01, 1.0): 85.0, (0.1, 2.0): at_two, (0.01, 2.0): 85.0}
        return pd.concat(
            measured({("osciquant", 3, 3): accuracy}, "mlp5-lambda", lam=lam).assign(lr=lr)
            for (lr, lam), accuracy in cells.items()
        )

    assert verdicts(study, rates(90.0))["C19"] == "supported"
    claim = found(study, rates(82.0))["C19"]
    assert [c.verdict for c in claim.comparisons] == ["supported", "contradicted"]


def test_c15_collapse_and_recovery(study):
    collapsing = [70, 80, 30, 20, 60, 80, 85, 84, 85]
    assert verdicts(study, *curves(collapsing, [50] * 9, "vit-tiny-finetune"))["C15"] == "not run"  # 3 bits alone
    measurements, table = curves(collapsing, [50] * 9, "vit-tiny-finetune")
    every = pd.concat(table.assign(train_bits=bits, variant=f"osciquant-{bits}") for bits in (2, 3, 4))
    every = every.assign(val_acc_2=50)
    comparison = found(study, measurements, every)["C15"].comparisons[0]
    assert (comparison.estimate.value, comparison.verdict) == (60, "supported")
    assert len(comparison.runs) == 9
    never_back = every.assign(val_acc_32=every.val_acc_32.where(every.epoch < 3, 20))
    assert found(study, measurements, never_back)["C15"].comparisons[0].verdict == "contradicted"


def test_deepest_recovered_drop():
    def drop(*values):
        return measures.deepest_recovered(pd.DataFrame({"val_acc_32": values, "val_acc_3": 1.0, "train_bits": 3}))

    assert drop(10, 50, 90) == 0
    assert drop(50, 20, 50) == 30
    assert drop(50, 20, 49) == 0
    assert drop(50, 45, 50, 10, 20, 60, 0) == 40


def test_two_seeds_of_a_sweep_or_a_curve_decide_nothing(study):
    flat = sweep({0.25: 90.0, 1.0: 90.5, 1.75: 90.5})
    assert verdicts(study, flat[flat.seed < 2])["C9"] == "inconclusive"
    table = histories(AS_PUBLISHED)
    claims = verdicts(study, None, table[table.seed < 2])
    assert claims["C8"] == claims["C13"] == "inconclusive"
    measurements, table = curves([80] * 11, [50, 50, 50, 60, 60, 60, 79, 79, 79, 79, 79])
    assert verdicts(study, measurements, table[table.seed < 2])["C10"] == "inconclusive"


def test_a_fitted_accuracy_counts_in_no_sweep_and_no_curve(study):
    fitted = study.model_copy(update={"fitted": [("resnet18", s, "osciquant", 3) for s in ("scratch", "sweep")]})
    assert found(fitted, sweep({0.25: 90.0, 1.0: 90.5, 1.75: 90.5}))["C9"].comparisons[0].verdict == "not judged"
    claim = found(fitted, *curves([80] * 11, [50] * 11))["C10"]
    assert {c.verdict for c in claim.comparisons} == {"not judged", "not run"}


# -- files -----------------------------------------------------------------------------------------------------


def test_claims_files_say_how_many_comparisons_say_what(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fitted = study.model_copy(update={"fitted": [("resnet18", "scratch", "ptq", 3)]})
    (tmp_path / "params").symlink_to(ROOT / "params")
    judged.write_claims(reported(fitted, [], measured(resnet_like())))
    claims = pd.read_csv(tmp_path / "results/quick/claims.csv").set_index("claim")
    assert list(claims.index) == CLAIMS
    c1 = claims.loc["C1"]
    assert (c1.verdict, c1.n, c1.supported, c1.counted, c1.not_judged, c1.comparisons) == ("supported", 3, 2, 2, 1, 11)
    evidence = pd.read_csv(tmp_path / "results/quick/claims_evidence.csv")
    assert (
        evidence[evidence.role == "main"].groupby("claim").size().to_dict()
        == claims.comparisons[claims.comparisons > 0].to_dict()
    )
    judged.write_claims(reported(study.model_copy(update={"tables": {}}), [], measured(resnet_like())))
    assert len(pd.read_csv(tmp_path / "results/quick/claims.csv")) == 0


def test_the_deciding_comparison_is_the_worst():
    claim = Claim("X", "made up")
    for text, value in (("good", 5.0), ("open", 0.0), ("bad", -5.0)):
        claim.add(text, Sample(pd.Series([value - 0.1, value, value + 0.1]), dict.fromkeys(range(3), "r")), Above())
    assert claim.deciding().text == "bad"
    mild = Claim("X", "made up", added=claim.added[:-1])
    assert (mild.verdict, mild.deciding().text) == ("inconclusive", "open")
    aside = Claim("X", "made up", added=[claim.added[0], replace(claim.added[2], side=True)])
    assert (aside.verdict, aside.scope) == ("supported", "1 of 1 comparisons")


def test_a_hypothesis_stands_in_the_place_of_the_claim_it_decides():
    reduced = studies.load(ROOT / "params/reduced.yaml")[0]
    claims = found(reduced)
    assert list(claims) == CLAIMS
    assert len(claims["C16"].comparisons) == 3 and not claims["C16"].reason
