"""The paper's claims C1 to C19, each as comparisons that its runs can decide.

Margins stand in the study file under ``claims``. Every function below makes one claim, in the paper's words first and
as comparisons after. A claim that names no model is tested on every model and setting of tables 1 and 2, one that names
a model in each of its settings; its scope says which have run, and published numbers stand beside where there are any.
"""

from __future__ import annotations

import math

import pandas as pd

from oscillations.core.bits import LATENT
from oscillations.report import estimates as stats
from oscillations.report.claims.evidence import (
    Claim,
    Evidence,
    Group,
    Published,
    Sample,
    Sweep,
    combine,
    side_by_side,
    span,
)
from oscillations.report.claims.measures import (
    deepest_recovered,
    later_elsewhere,
    near_at_best,
    own_accuracy,
    per_epoch,
    per_step,
    rise_elsewhere,
)
from oscillations.report.estimates import Above, Below, Between, ByP, StdAbove, Within
from oscillations.report.text import bits_label

FLAT = (0.25, 1.75)  # the range of lambda in the paper's Table 4
WIDTHS = (LATENT, 8, 4, 3, 2)


def claims(evidence: Evidence) -> list[Claim]:
    """All of them, in order."""
    functions = (
        _c1, _c2, _c3, _c4, _c5, _c6, _c7, _c8, _c9, _c10, _c11, _c12, _c13, _c14, _c15, _c16, _c17, _c18, _c19,
    )  # fmt: skip
    return [function(evidence) for function in functions]


def _c1(evidence: Evidence) -> Claim:
    claim = Claim("C1", "OsciQuant is more accurate than PTQ (ViT: at 3 and 4 bits; others: at 2, 3 and 4).")
    for group in evidence.groups():
        for bits in (3, 4) if group.model == "vit-tiny" else (2, 3, 4):
            osci = evidence.accuracy(group, "osciquant", bits, bits)
            ptq = evidence.accuracy(group, "ptq", LATENT, bits)
            text = f"{group}, {bits_label(bits)}: OsciQuant - PTQ > 0"
            claim.add(text, osci - ptq, Above(), subject=str(group))
    return claim


def _c2(evidence: Evidence) -> Claim:
    """The spreads of all cells are compared at once: the seeds of one are too few."""
    margin = evidence.study.claims.match_margin
    claim = Claim("C2", f"OsciQuant matches QAT within {margin:g} points at 3 and 4 bits, with a smaller spread.")
    pairs = []
    for group in evidence.groups():
        for bits in (3, 4):
            osci, qat = (evidence.accuracy(group, method, bits, bits) for method in ("osciquant", "qat"))
            text, both = f"{group}, {bits_label(bits)}: |OsciQuant - QAT| < {margin:g}", osci - qat
            claim.add(text, both, Within(margin), subject=str(group))
            pairs.append((osci, qat, both))
    _add_spreads(claim, pairs)
    return claim


def _add_spreads(claim: Claim, cells: list[tuple[Sample, Sample, Sample]]) -> None:
    """OsciQuant's variance over seeds is smaller than QAT's, over all cells that count (or, if none has run, all)."""
    ran = [cell for cell in cells if len(cell[2].values) >= stats.MINIMUM_RUNS and not cell[2].fitted]
    ratio = stats.variance_ratio(
        [cell[0].values.to_numpy() for cell in ran], [cell[1].values.to_numpy() for cell in ran]
    )
    known = [(a.published, b.published) for a, b, _ in ran or cells if a.published and b.published]
    logs = [2 * math.log(a.parts[0] / b.parts[0]) for a, b in known]
    published = Published(math.exp(sum(logs) / len(logs))) if logs else None
    runs = dict(enumerate(name for _, _, both in ran for name in both.runs.values()))
    text = f"variance over seeds, geometric mean over {len(ran) or 'all'} cells: OsciQuant / QAT < 1"
    claim.add(text, Sample(pd.Series(dtype=float), runs), ByP(1.0, -1), lambda _: ratio, published=published)


def _c3(evidence: Evidence) -> Claim:
    claim = Claim("C3", "At ternary, QAT is more accurate than OsciQuant.")
    for group in evidence.groups():
        qat, osci = (evidence.accuracy(group, method, 2, 2) for method in ("qat", "osciquant"))
        claim.add(f"{group}, ternary: QAT - OsciQuant > 0", qat - osci, Above(), subject=str(group))
    return claim


def _c4(evidence: Evidence) -> Claim:
    margin = evidence.study.claims.near_baseline
    claim = Claim("C4", f"OsciQuant at FP32 and 8 bits stays within {margin:g} points below the FP baseline.")
    for group in evidence.groups():
        for trained in (2, 3, 4):
            for bits in (LATENT, 8):
                _add_near_baseline(claim, evidence, group, trained, bits, margin)
    return claim


def _add_near_baseline(
    claim: Claim, evidence: Evidence, group: Group, trained: int, bits: int, margin: float, note: str = ""
) -> None:
    """OsciQuant loses no more than ``margin`` points to the FP baseline."""
    lost = evidence.accuracy(group, "osciquant", trained, bits) - evidence.accuracy(group, "baseline", LATENT, LATENT)
    text = f"{_crossed(group, trained, bits)}: OsciQuant - FP baseline > -{margin:g}"
    claim.add(text, lost, Above(-margin), subject=str(group), note=note)


def _crossed(group: Group, trained: int, bits: int) -> str:
    return f"{group}, trained {bits_label(trained)}, at {bits_label(bits)}"


def _c5(evidence: Evidence) -> Claim:
    bound = evidence.study.near_chance
    claim = Claim(
        "C5",
        "ResNet's and ViT's QAT trained at ternary, and ResNet's at 3 bits, is near chance at every other bit width; "
        "ViT's at 3 bits is not at 4 bits and more.",
    )
    for group in evidence.groups("resnet18", "vit-tiny"):
        for trained in (2, 3) if group.model == "resnet18" else (2,):
            for bits in _others(trained):
                found = evidence.accuracy(group, "qat", trained, bits)
                text = f"{_crossed(group, trained, bits)}: QAT's accuracy < {bound:g}"
                claim.add(text, found, Below(bound), subject=str(group))
        if group.model == "vit-tiny":
            for bits in (LATENT, 8, 4):
                found = evidence.accuracy(group, "qat", 3, bits)
                text = f"{_crossed(group, 3, bits)}: QAT's accuracy > {bound:g}"
                claim.add(text, found, Above(bound), subject=str(group))
    return claim


def _others(trained: int) -> list[int]:
    return [bits for bits in WIDTHS if bits != trained]


def _c6(evidence: Evidence) -> Claim:
    margin, note = evidence.study.claims.cross_margin, evidence.study.claims.origin("cross_margin")
    claim = Claim(
        "C6",
        f"OsciQuant trained at 3 or 4 bits is good at both: at the other width no worse, by {margin:g} points, than "
        "what was trained for it; ViT trained at 4 bits is unstable at 3.",
        after_runs=True,
    )
    for group in evidence.groups():
        for trained, other in ((3, 4), (4, 3)):
            if (group.model, trained) == ("vit-tiny", 4):
                _add_unstable(claim, evidence, group, trained, other)
                continue
            crossed, own = (evidence.accuracy(group, "osciquant", bits, other) for bits in (trained, other))
            text = f"{_crossed(group, trained, other)}: OsciQuant - the one trained there > -{margin:g}"
            claim.add(text, crossed - own, Above(-margin), subject=str(group), note=note)
    return claim


def _add_unstable(claim: Claim, evidence: Evidence, group: Group, trained: int, bits: int) -> None:
    """The accuracy of OsciQuant differs much between seeds."""
    bound = evidence.study.claims.unstable_std
    found = evidence.accuracy(group, "osciquant", trained, bits)
    spread = Published(found.published.parts[0]) if found.published and found.published.parts else None
    claim.add(
        f"{_crossed(group, trained, bits)}: std over seeds > {bound:g}", found, StdAbove(bound), stats.std_interval,
        subject=str(group), published=spread, note=evidence.study.claims.origin("unstable_std"),
    )  # fmt: skip


def _c7(evidence: Evidence) -> Claim:
    margins = evidence.study.claims
    claim = Claim(
        "C7", "ResNet OsciQuant trained at ternary is near full precision at 3 bits and more.", after_runs=True
    )
    for group in evidence.groups("resnet18"):
        for bits in (LATENT, 8, 4, 3):
            _add_near_baseline(claim, evidence, group, 2, bits, margins.near_full, margins.origin("near_full"))
        high, low = (evidence.accuracy(group, "osciquant", 2, bits) for bits in (3, 2))
        claim.add(f"{group}: 3-bit - ternary > 0", high - low, Above(), subject=str(group), side=True)
    return claim


def _c8(evidence: Evidence) -> Claim:
    """Counts per weight (Nagel's rule), per optimizer step and, as the paper samples them, per epoch.

    Runs stop at different epochs and counts fall during training, so only epochs that all runs of a sweep have
    are averaged; the first has no previous change to be opposite to.
    """
    claim = Claim(
        "C8",
        "Oscillations grow with lambda; at some tested lambda they are as many as QAT's; QAT has more than lambda 0.",
        after_runs=True,
    )
    for sweep in evidence.sweeps(evidence.epochs, "table4", "table5"):
        shared = sweep.rows.groupby("run").epoch.max().min()
        for name, measure in (("per step", per_step(shared)), ("per epoch", per_epoch(shared))):
            counts, qat = sweep.osciquant(measure), sweep.qat(measure)
            _add_trend(claim, sweep, f"count {name}", counts)
            zero = counts.pop(0.0, Sample.none())
            claim.add(
                f"{sweep}: QAT - lambda 0, % of the weights {name}, > 0", qat - zero, Above(), subject=sweep.subject
            )
            _add_similar(claim, evidence, sweep, name, counts, qat, zero)
    return claim


def _add_similar(
    claim: Claim, evidence: Evidence, sweep: Sweep, name: str, counts: dict[float, Sample], qat: Sample, zero: Sample
) -> None:
    """The tested lambda whose count is nearest to QAT's differs from it by no more than a factor.

    Where the smallest tested lambda has more than QAT and lambda 0 less, one between them may be the one.
    """
    factor = evidence.study.claims.similar_ratio
    ratios = {lam: combine([count, qat], lambda table: table[0] / table[1]) for lam, count in counts.items()}
    off = {lam: abs(math.log(ratio.values.mean())) for lam, ratio in ratios.items() if len(ratio.values)}
    lam = min(off, key=off.__getitem__, default=None)
    nearest = Sample.none() if lam is None else ratios[lam]
    limits = {}
    if lam == min(ratios, default=None) and zero.values.mean() < qat.values.mean() and nearest.values.mean() > 1:
        limits = {stats.CONTRADICTED: f"lambda 0 has fewer: one below {lam:g} has not been tested"}
    at = "the nearest lambda" if lam is None else f"lambda {lam:g}"
    text = f"{sweep}: count {name} at {at} / QAT's between 1 / {factor:g} and {factor:g}"
    note = evidence.study.claims.origin("similar_ratio")
    claim.add(text, nearest, Between(1 / factor, factor), subject=sweep.subject, note=note, limits=limits)


def _add_trend(claim: Claim, sweep: Sweep, what: str, by_lambda: dict[float, Sample]) -> None:
    shown = f" in ({', '.join(f'{lam:g}' for lam in by_lambda)})" if by_lambda else ""
    samples = side_by_side(list(by_lambda.values()))
    text = f"{sweep}: {what} grows with lambda{shown}: rank correlation > 0"
    claim.add(text, samples, ByP(), stats.trend, subject=sweep.subject)


def _c9(evidence: Evidence) -> Claim:
    """The range over lambda of one seed's accuracies holds their noise too, which speaks against flatness.

    A range over fewer lambdas than the paper's can only be too small, so it cannot support.
    """
    margin, collapse = evidence.study.claims.flat_margin, evidence.study.claims.collapse
    claim = Claim(
        "C9",
        f"Accuracy at 3 bits is flat in lambda over [{FLAT[0]:g}, {FLAT[1]:g}] (range below {margin:g} points); "
        f"for too small a lambda ViT's collapses.",
    )
    wanted = sorted(evidence.published_lambdas("table4"))
    for sweep in evidence.sweeps(evidence.tests, "table4"):
        if sweep.bits == 3:
            found = sweep.osciquant(own_accuracy, *FLAT)
            samples = list(found.values()) if len(found) > 1 else []
            shown = f" in ({', '.join(f'{lam:g}' for lam in found)})" if found else ""
            missing = len(set(wanted) - set(found))
            limits = (
                {stats.SUPPORTED: f"{missing} of the paper's {len(wanted)} lambdas have not run"} if missing else {}
            )
            means = [sample.values.mean() for sample in samples]
            if samples and max(means) - min(means) < margin:
                limits[stats.CONTRADICTED] = (
                    f"the range of the means, {max(means) - min(means):.2f}, is within the margin"
                )
            claim.add(
                f"{sweep}: range over lambda{shown} < {margin:g}", combine(samples, span), Below(margin),
                subject=sweep.subject, published=_published_range(sweep),
                limits=limits,
            )  # fmt: skip
    for sweep in evidence.sweeps(evidence.tests, "table5"):
        if sweep.bits == 3:
            usual = combine(list(sweep.osciquant(own_accuracy, *FLAT).values()), lambda table: table.mean(axis=1))
            small = sweep.osciquant(own_accuracy, 1e-9, FLAT[0] / 2)
            lam, lowest = min(small.items(), default=("the smallest", Sample.none()))
            text = f"{sweep}: lambda {lam} minus the mean over [{FLAT[0]:g}, {FLAT[1]:g}] < -{collapse:g}"
            claim.add(text, lowest - usual, Below(-collapse), subject=sweep.subject)
    return claim


def _published_range(sweep: Sweep) -> Published | None:
    inside = [accuracy for lam, accuracy in sweep.published.items() if FLAT[0] <= lam <= FLAT[1]]
    return Published(max(inside) - min(inside)) if inside else None


def _c10(evidence: Evidence) -> Claim:
    claim = Claim(
        "C10",
        "OsciQuant's accuracy at other bit widths than the target (8 among them) rises in later epochs, and more than "
        "QAT's.",
        after_runs=True,
    )
    for group in evidence.groups():
        for trained in (2, 3, 4):
            found = evidence.history(group, "osciquant", trained, rise_elsewhere)
            qat = evidence.history(group, "qat", trained, rise_elsewhere)
            text = (
                f"{group}, trained {bits_label(trained)}: mean at the other widths, last third of epochs - first third"
            )
            claim.add(f"{text} > 0", found, Above(), subject=str(group))
            claim.add(f"{text}, OsciQuant - QAT > 0", found - qat, Above(), subject=str(group))
    return claim


def _c11(evidence: Evidence) -> Claim:
    margins = evidence.study.claims
    claim = Claim(
        "C11",
        "At no other bit width is QAT more accurate than at its target, and at none is OsciQuant more accurate than "
        f"unquantized (by more than {margins.bound_margin:g} points).",
    )
    for group in evidence.groups():
        for trained in (2, 3, 4):
            for method, name, bound in (("qat", "QAT", trained), ("osciquant", "OsciQuant", LATENT)):
                others = [evidence.accuracy(group, method, trained, bits) for bits in _others(bound)]
                excess = combine(others, _largest) - evidence.accuracy(group, method, trained, bound)
                text = f"{group}, {name} trained {bits_label(trained)}: best other width - {bits_label(bound)}"
                claim.add(
                    f"{text} < {margins.bound_margin:g}", excess, Below(margins.bound_margin), subject=str(group),
                    note=margins.origin("bound_margin"),
                )  # fmt: skip
    return claim


def _largest(table: pd.DataFrame) -> pd.Series:
    return table.max(axis=1)


def _c12(evidence: Evidence) -> Claim:
    margin, note = evidence.study.claims.epoch_margin, evidence.study.claims.origin("epoch_margin")
    claim = Claim(
        "C12", f"OsciQuant and QAT need equally many epochs (within {margin:g}), and both more than the FP baseline."
    )
    for group in evidence.groups():
        baseline = evidence.best_epoch(group, "baseline", LATENT)
        for bits in (2, 3, 4):
            osci, qat = (evidence.best_epoch(group, method, bits) for method in ("osciquant", "qat"))
            text, subject = f"{group}, {bits_label(bits)}: epochs", str(group)
            claim.add(f"{text}, |OsciQuant - QAT| < {margin:g}", osci - qat, Within(margin), note=note, subject=subject)
            claim.add(f"{text}, OsciQuant - FP > 0", osci - baseline, Above(), subject=subject)
            claim.add(f"{text}, QAT - FP > 0", qat - baseline, Above(), subject=subject)
    return claim


def _c13(evidence: Evidence) -> Claim:
    """At the best epoch: share of the weights within 5 % of a step of a threshold."""
    bound, note = evidence.study.claims.uniform_near, evidence.study.claims.origin("uniform_near")
    claim = Claim("C13", "Weights cluster at thresholds: more with lambda, and under QAT, but not under lambda 0.")
    for sweep in evidence.sweeps(evidence.epochs, "table4", "table5"):
        near, qat = sweep.osciquant(near_at_best), sweep.qat(near_at_best)
        zero, subject = near.get(0.0, Sample.none()), sweep.subject
        _add_trend(claim, sweep, "share near a threshold", near)
        claim.add(f"{sweep}: share near a threshold, QAT - lambda 0 > 0", qat - zero, Above(), subject=subject)
        uniform = f"{bound:g}, that of uniform weights"
        text = f"{sweep}: share near a threshold under QAT > {uniform}"
        claim.add(text, qat, Above(bound), note=note, subject=subject, side=True)
        claim.add(
            f"{sweep}: share near a threshold under lambda 0 < {uniform}",
            zero,
            Below(bound),
            note=note,
            subject=subject,
        )
    return claim


def _c14(evidence: Evidence) -> Claim:
    bound = evidence.study.near_chance
    claim = Claim(
        "C14", "ViT OsciQuant trained at ternary is at chance at 3 bits, unstable at 4 and near the FP baseline at 8."
    )
    for group in evidence.groups("vit-tiny"):
        found = evidence.accuracy(group, "osciquant", 2, 3)
        claim.add(f"{_crossed(group, 2, 3)}: accuracy < {bound:g}", found, Below(bound), subject=str(group))
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
        text = f"{text}, over OsciQuant at 2, 3 and 4 bits > {depth:g}"
        claim.add(text, combine(drops, _largest), Above(depth), subject=str(group))
    return claim


def _c16(evidence: Evidence) -> Claim:
    return Claim(
        "C16",
        "QAT with frozen or dampened oscillations from the start is worse than when that starts late; freezing only "
        "low-frequency weights does no harm.",
        reason="study methods decides it: its hypothesis C16 holds the runs with freezing and dampening",
    )


def _c17(evidence: Evidence) -> Claim:
    """The text claims it of ternary and 3 bits; what was trained at 4 bits stands beside."""
    statement = "Trained at ternary or 3 bits, OsciQuant is more accurate than QAT at every other width."
    claim = Claim("C17", statement, after_runs=True)
    for group in evidence.groups():
        for trained in (2, 3, 4):
            for bits in _others(trained):
                osci, qat = (evidence.accuracy(group, method, trained, bits) for method in ("osciquant", "qat"))
                text = f"{_crossed(group, trained, bits)}: OsciQuant - QAT > 0"
                excluded, side = evidence.both_near_chance(osci, qat), trained == 4
                claim.add(text, osci - qat, Above(), subject=str(group), excluded=excluded, side=side)
    return claim


def _c18(evidence: Evidence) -> Claim:
    """A width has converged in the first epoch whose accuracy there is near that width's best."""
    margins = evidence.study.claims
    claim = Claim(
        "C18",
        f"QAT converges (within {margins.bound_margin:g} points of its best) at its target first, later at 4 and 8 "
        "bits.",
        after_runs=True,
    )
    for group in evidence.groups():
        for trained in (2, 3, 4):
            later = evidence.history(group, "qat", trained, later_elsewhere(margins.bound_margin))
            text = f"{group}, trained {bits_label(trained)}: epoch of convergence, mean of 4 and 8 bits - target > 0"
            note = margins.origin("bound_margin")
            claim.add(text, later, Above(), subject=str(group), note=note)
    return claim


def _c19(evidence: Evidence) -> Claim:
    """The rate with the best mean over lambda, against every other at every lambda; it is chosen on the same runs."""
    claim = Claim("C19", "One learning rate is best over the range of lambda.", after_runs=True)
    for (model, bits), rows in evidence.rate_searches().items():
        cells = rows[rows["lambda"] > 0].pivot_table(index="lr", columns="lambda", values="accuracy")
        cells = cells.dropna(axis=1)
        group = Group("", model, "sweep")
        if len(cells) < 2 or cells.shape[1] < 2:
            text = f"{group}, {bits_label(bits)}: best rate - any other, at every lambda > 0"
            claim.add(text, Sample.none(), Above())
            continue
        best = cells.mean(axis=1).idxmax()
        for lam in cells:
            mine = rows[rows["lambda"] == lam]
            for other in cells.index.drop(best):
                sides = [Sample.of(mine[mine.lr == rate], "accuracy") for rate in (best, other)]
                text = f"{group}, {bits_label(bits)}, lambda {lam:g}: learning rate {best:g} - {other:g} > 0"
                claim.add(text, sides[0] - sides[1], Above(), subject=str(group))
    return claim
