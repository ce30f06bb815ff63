"""The paper's claims C1 to C16, each as comparisons that its runs can decide.

Margins stand in the study file under ``claims``. Every function below makes one claim, in the paper's words
first and as comparisons after.
"""

from __future__ import annotations

import math

import pandas as pd

from oscillations.core.bits import LATENT
from oscillations.report import estimates as stats
from oscillations.report.claims.evidence import Claim, Evidence, Group, Sample, combine, side_by_side
from oscillations.report.claims.measures import (
    deepest_recovered,
    gap_change,
    near_at_best,
    own_accuracy,
    per_epoch,
    per_step,
)
from oscillations.report.estimates import above, below, significant, within
from oscillations.report.tables.published import bits_label

UNIFORM_NEAR = 0.1  # share near a threshold of uniform weights; Gaussian ones of any width have no more
FLAT = (0.25, 1.75)  # the range of lambda in the paper's Table 4


def claims(evidence: Evidence) -> list[Claim]:
    """All of them, in order."""
    functions = (_c1, _c2, _c3, _c4, _c5, _c6, _c7, _c8, _c9, _c10, _c11, _c12, _c13, _c14, _c15, _c16)
    return [function(evidence) for function in functions]


def above_by(bound: float) -> stats.Judge:
    return lambda estimate: above(estimate, bound)


def below_by(bound: float) -> stats.Judge:
    return lambda estimate: below(estimate, bound)


def _c1(evidence: Evidence) -> Claim:
    claim = Claim("C1", "OsciQuant is more accurate than PTQ (ViT: at 3 and 4 bits; others: at 2, 3 and 4).")
    for group in evidence.groups():
        for bits in (3, 4) if group.model == "vit-tiny" else (2, 3, 4):
            osci = evidence.accuracy(group, "osciquant", bits, bits)
            ptq = evidence.accuracy(group, "ptq", LATENT, bits)
            claim.add(f"{group}, {bits_label(bits)}: OsciQuant - PTQ > 0", osci - ptq, above)
    return claim


def _c2(evidence: Evidence) -> Claim:
    margin = evidence.study.claims.match_margin
    claim = Claim("C2", f"OsciQuant matches QAT within {margin:g} points at 3 and 4 bits, with a smaller std mostly.")
    wider, runs = {}, {}  # by cell
    for group in evidence.groups():
        for bits in (3, 4):
            osci = evidence.accuracy(group, "osciquant", bits, bits)
            qat = evidence.accuracy(group, "qat", bits, bits)
            cell = f"{group}, {bits_label(bits)}"
            both = osci - qat
            claim.add(f"{cell}: |OsciQuant - QAT| < {margin:g}", both, lambda e: within(e, margin), stats.tost_interval)
            if len(both.values) and not both.fitted:
                enough = len(both.values) >= stats.MINIMUM_RUNS
                wider[cell] = osci.values.std(ddof=1) - qat.values.std(ddof=1) if enough else math.nan
                runs[cell] = " ".join(both.runs.values())
    text = "std of OsciQuant < std of QAT in more than half of the model x bits cells"
    claim.add(text, Sample(pd.Series(wider, dtype=float), runs), lambda e: significant(e, 0.5), stats.sign_test)
    return claim


def _c3(evidence: Evidence) -> Claim:
    claim = Claim("C3", "At ternary, QAT is more accurate than OsciQuant.")
    for group in evidence.groups():
        qat, osci = (evidence.accuracy(group, method, 2, 2) for method in ("qat", "osciquant"))
        claim.add(f"{group}, ternary: QAT - OsciQuant > 0", qat - osci, above)
    return claim


def _c4(evidence: Evidence) -> Claim:
    margin = evidence.study.claims.near_baseline
    claim = Claim("C4", f"OsciQuant at FP32 and 8 bits stays within {margin:g} points below the FP baseline.")
    for group in evidence.groups():
        for trained in (2, 3, 4):
            for bits in (LATENT, 8):
                _add_near_baseline(claim, evidence, group, trained, bits, margin)
    return claim


def _add_near_baseline(claim: Claim, evidence: Evidence, group: Group, trained: int, bits: int, margin: float) -> None:
    """OsciQuant loses no more than ``margin`` points to the FP baseline."""
    osci = evidence.accuracy(group, "osciquant", trained, bits)
    lost = osci - evidence.accuracy(group, "baseline", LATENT, LATENT)
    claim.add(f"{_crossed(group, trained, bits)}: minus FP baseline > -{margin:g}", lost, above_by(-margin))


def _crossed(group: Group, trained: int, bits: int) -> str:
    return f"{group}, trained {bits_label(trained)}, at {bits_label(bits)}"


def _c5(evidence: Evidence) -> Claim:
    bound = evidence.chance + evidence.study.claims.chance_margin
    claim = Claim(
        "C5", "ResNet QAT trained at 2 or 3 bits is near chance at every other bit width; ViT QAT at 3 bits is not."
    )
    for group in evidence.groups("resnet18"):
        for trained in (2, 3):
            for bits in _others(trained):
                found = evidence.accuracy(group, "qat", trained, bits)
                claim.add(f"{_crossed(group, trained, bits)}: accuracy < {bound:g}", found, below_by(bound))
    for group in evidence.groups("vit-tiny"):
        for bits in (LATENT, 4):
            found = evidence.accuracy(group, "qat", 3, bits)
            claim.add(f"{_crossed(group, 3, bits)}: accuracy > {bound:g}", found, above_by(bound))
    return claim


def _others(trained: int) -> list[int]:
    return [bits for bits in (LATENT, 2, 3, 4, 8) if bits != trained]


def _c6(evidence: Evidence) -> Claim:
    margin = evidence.study.claims.good_margin
    claim = Claim(
        "C6",
        f"OsciQuant trained at 3 or 4 bits is good at both (within {margin:g} points below the FP baseline); "
        "ViT trained at 4 bits is unstable at 3.",
    )
    for group in evidence.groups():
        for trained in (3, 4):
            for bits in (3, 4):
                if (group.model, trained, bits) == ("vit-tiny", 4, 3):
                    _add_unstable(claim, evidence, group, trained, bits)
                else:
                    _add_near_baseline(claim, evidence, group, trained, bits, margin)
    return claim


def _add_unstable(claim: Claim, evidence: Evidence, group: Group, trained: int, bits: int) -> None:
    """The accuracy of OsciQuant differs much between seeds."""
    bound = evidence.study.claims.unstable_std
    found = evidence.accuracy(group, "osciquant", trained, bits)
    claim.add(
        f"{_crossed(group, trained, bits)}: std over seeds > {bound:g}", found, above_by(bound), stats.std_interval
    )


def _c7(evidence: Evidence) -> Claim:
    claim = Claim("C7", "ResNet OsciQuant trained at ternary is more accurate at 3 bits than at ternary.")
    for group in evidence.groups("resnet18"):
        high, low = (evidence.accuracy(group, "osciquant", 2, bits) for bits in (3, 2))
        claim.add(f"{group}: 3-bit - ternary > 0", high - low, above)
    return claim


def _c8(evidence: Evidence) -> Claim:
    """Counts per weight (Nagel's rule), per optimizer step and, as the paper samples them, per epoch.

    Runs stop at different epochs and counts fall during training, so only epochs that all runs of a sweep have
    are averaged; the first has no previous change to be opposite to. If lambda 0 counts less than QAT and
    another lambda more, some lambda between reproduces QAT's count.
    """
    claim = Claim(
        "C8", "Oscillations grow with lambda; some lambda reaches QAT's count; QAT oscillates more than lambda 0."
    )
    for sweep in evidence.sweeps(evidence.epochs, "table4", "table5"):
        shared = sweep.rows.groupby("run").epoch.max().min()
        for name, measure in (("per step", per_step(shared)), ("per epoch", per_epoch(shared))):
            counts, qat = sweep.osciquant(measure), sweep.qat(measure)
            _add_trend(claim, f"{sweep}: count {name}", counts)
            zero, most = counts.get(0.0, Sample.none()), max(counts.values(), key=_mean, default=Sample.none())
            claim.add(f"{sweep}: QAT - lambda 0, {name}, > 0", qat - zero, above)
            claim.add(f"{sweep}: lambda of the largest count - QAT, {name}, > 0", most - qat, above)
    return claim


def _mean(sample: Sample) -> float:
    return sample.values.mean()


def _add_trend(claim: Claim, text: str, by_lambda: dict[float, Sample]) -> None:
    shown = f" in ({', '.join(f'{lam:g}' for lam in by_lambda)})" if by_lambda else ""
    samples = side_by_side(list(by_lambda.values()))
    claim.add(f"{text} grows with lambda{shown}: rank correlation > 0", samples, significant, stats.trend)


def _c9(evidence: Evidence) -> Claim:
    """The range over lambda of one seed's accuracies holds their noise too, which speaks against flatness."""
    margin, collapse = evidence.study.claims.flat_margin, evidence.study.claims.collapse
    claim = Claim(
        "C9",
        f"Accuracy at 3 bits is flat in lambda over [{FLAT[0]:g}, {FLAT[1]:g}] (range below {margin:g} points); "
        f"for too small a lambda ViT's collapses.",
    )
    for sweep in evidence.sweeps(evidence.tests, "table4"):
        if sweep.bits == 3:
            found = sweep.osciquant(own_accuracy, *FLAT)
            whole = len(found) >= 3 and set(FLAT) <= set(found)  # a part of the range says nothing of it
            samples = list(found.values()) if whole else []
            spread = combine(samples, lambda table: table.max(axis=1) - table.min(axis=1))
            shown = f" in ({', '.join(f'{lam:g}' for lam in found)})" if found else ""
            claim.add(f"{sweep}: range over lambda{shown} < {margin:g}", spread, below_by(margin))
    for sweep in evidence.sweeps(evidence.tests, "table5"):
        if sweep.bits == 3:
            usual = combine(list(sweep.osciquant(own_accuracy, *FLAT).values()), lambda table: table.mean(axis=1))
            small = sweep.osciquant(own_accuracy, 1e-9, FLAT[0] / 2)
            lam, lowest = min(small.items(), default=("the smallest", Sample.none()))
            text = f"{sweep}: lambda {lam} minus the mean over [{FLAT[0]:g}, {FLAT[1]:g}] < -{collapse:g}"
            claim.add(text, lowest - usual, below_by(-collapse))
    return claim


def _c10(evidence: Evidence) -> Claim:
    claim = Claim("C10", "OsciQuant's robustness to other bit widths than the target improves in later epochs.")
    for group in evidence.groups():
        for trained in (2, 3, 4):
            found = evidence.history(group, "osciquant", trained, gap_change)
            bits = " and ".join(bits_label(bits) for bits in (3, 4) if bits != trained)
            text = f"{group}, trained {bits_label(trained)}: FP32 - {bits}, last third of epochs - first third < 0"
            claim.add(text, found, below_by(0.0))
    return claim


def _c11(evidence: Evidence) -> Claim:
    margin = evidence.study.claims.bound_margin
    claim = Claim(
        "C11",
        "At no other bit width is QAT more accurate than at its target, and at none is OsciQuant more accurate than "
        f"unquantized (by more than {margin:g} points).",
    )
    for group in evidence.groups():
        for trained in (2, 3, 4):
            for method, name, bound in (("qat", "QAT", trained), ("osciquant", "OsciQuant", LATENT)):
                others = [bits for bits in (LATENT, 2, 3, 4, 8) if bits != bound]
                best = combine([evidence.accuracy(group, method, trained, bits) for bits in others], _largest)
                excess = best - evidence.accuracy(group, method, trained, bound)
                text = f"{group}, {name} trained {bits_label(trained)}: best other width - {bits_label(bound)}"
                claim.add(f"{text} < {margin:g}", excess, below_by(margin))
    return claim


def _largest(table: pd.DataFrame) -> pd.Series:
    return table.max(axis=1)


def _c12(evidence: Evidence) -> Claim:
    margin = evidence.study.claims.epoch_margin
    claim = Claim(
        "C12", f"OsciQuant and QAT need equally many epochs (within {margin:g}), and both more than the FP baseline."
    )
    for group in evidence.groups():
        baseline = evidence.best_epoch(group, "baseline", LATENT)
        for bits in (2, 3, 4):
            osci, qat = (evidence.best_epoch(group, method, bits) for method in ("osciquant", "qat"))
            text = f"{group}, {bits_label(bits)}: epochs"
            same = osci - qat
            claim.add(f"{text}, |OsciQuant - QAT| < {margin:g}", same, lambda e: within(e, margin), stats.tost_interval)
            claim.add(f"{text}, OsciQuant - FP > 0", osci - baseline, above)
            claim.add(f"{text}, QAT - FP > 0", qat - baseline, above)
    return claim


def _c13(evidence: Evidence) -> Claim:
    """At the best epoch: share of the weights within 5 % of a step of a threshold."""
    claim = Claim("C13", "Weights cluster at thresholds: more with lambda, and under QAT, but not under lambda 0.")
    for sweep in evidence.sweeps(evidence.epochs, "table4", "table5"):
        near, qat = sweep.osciquant(near_at_best), sweep.qat(near_at_best)
        zero = near.get(0.0, Sample.none())
        _add_trend(claim, f"{sweep}: share near a threshold", near)
        claim.add(f"{sweep}: share near a threshold, QAT - lambda 0 > 0", qat - zero, above)
        text = f"{sweep}: share near a threshold under lambda 0 < {UNIFORM_NEAR:g}, that of uniform weights"
        claim.add(text, zero, below_by(UNIFORM_NEAR))
    return claim


def _c14(evidence: Evidence) -> Claim:
    bound = evidence.chance + evidence.study.claims.chance_margin
    claim = Claim(
        "C14", "ViT OsciQuant trained at ternary is at chance at 3 bits, unstable at 4 and near the FP baseline at 8."
    )
    for group in evidence.groups("vit-tiny"):
        found = evidence.accuracy(group, "osciquant", 2, 3)
        claim.add(f"{_crossed(group, 2, 3)}: accuracy < {bound:g}", found, below_by(bound))
        _add_unstable(claim, evidence, group, 2, 4)
        _add_near_baseline(claim, evidence, group, 2, 8, evidence.study.claims.near_baseline)
    return claim


def _c15(evidence: Evidence) -> Claim:
    depth = evidence.study.claims.collapse
    claim = Claim(
        "C15", f"ViT's validation accuracy collapses by more than {depth:g} points in training, and recovers."
    )
    for group in evidence.groups("vit-tiny"):
        drops = [evidence.history(group, "osciquant", bits, deepest_recovered) for bits in (2, 3, 4)]
        text = f"{group}: deepest drop of FP32 or target accuracy below its maximum so far that was made up for"
        claim.add(f"{text}, over OsciQuant at 2, 3 and 4 bits > {depth:g}", combine(drops, _largest), above_by(depth))
    return claim


def _c16(evidence: Evidence) -> Claim:
    return Claim(
        "C16",
        "QAT with frozen or dampened oscillations from the start is worse than when that starts late; freezing only "
        "low-frequency weights does no harm.",
        reason="study methods decides it: its hypothesis C16 holds the runs with freezing and dampening",
    )
