"""Which figures there is something to draw of: what has not run leaves no file."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from oscillations.core.bits import LATENT
from oscillations.study.report_schema import Panels, RatePanels, SweepPanels, figure_number
from oscillations.study.schema import Study
from oscillations.study.variants import Variant


def drawn(study: Study, variants: Iterable[Variant], ran: Collection[str], entries: Collection[str]) -> list[str]:
    """The study's figures of which anything has run, in their order.

    ``ran``: ``experiment/variant`` of the runs; ``entries``: the post-training entries that have run.
    """
    mine = [variant for variant in variants if variant.path in ran]
    return [name for name in study.figure_names if _shows(study, mine, set(ran), entries, name)]


def _shows(study: Study, ran: list[Variant], paths: set[str], entries: Collection[str], name: str) -> bool:
    kind, spec = figure_number(name), study.figures.get(name)
    label = name.removeprefix(f"{kind}-")
    if isinstance(spec, Panels):
        return not paths.isdisjoint(spec.panels)
    if isinstance(spec, SweepPanels):
        return any(_swept(variant, spec, rests=kind == "figure6") for variant in ran)
    if isinstance(spec, RatePanels):
        return any(variant.experiment == spec.experiment for variant in ran)
    if kind == "figure-comparison":
        compared = study.comparisons[label]
        mine = [variant for variant in ran if variant.experiment in compared.experiments]
        return any(variant.recipe.bits in (LATENT, compared.bits) for variant in mine)
    if kind == "figure-reconstruction":
        return label in entries
    if kind == "figure-gain":
        return study.gain is not None and study.gain.against in paths
    return True  # exact, or a toy experiment


def _swept(variant: Variant, spec: SweepPanels, rests: bool) -> bool:
    """Whether it is a point of a sweep; ``rests``: lambda 0, where nothing oscillates on purpose, is one."""
    method = variant.recipe.method
    wanted = variant.experiment in spec.experiments and (method.name, variant.recipe.bits) == ("osciquant", spec.bits)
    return wanted and (rests or method.get("lambda") > 0)
