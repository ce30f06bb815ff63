"""One number for every variant, for programs that compare studies (``dvc metrics diff``)."""

from __future__ import annotations

from oscillations.core.files import write_json
from oscillations.report.results import Report


def write_metrics(report: Report) -> None:
    """Write ``metrics.json``: mean test accuracy over seeds at the bits trained for, by experiment and variant."""
    tests = report.results.tests
    own = tests[tests.eval_bits == tests.train_bits]
    found: dict[str, dict[str, float]] = {}
    for (experiment, variant), runs in own.groupby(["experiment", "variant"]):
        found.setdefault(experiment, {})[variant] = round(runs.accuracy.mean(), 2)
    write_json(report.folder / "metrics.json", found)
