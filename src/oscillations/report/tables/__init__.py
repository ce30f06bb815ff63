"""Every table of a study: the paper's, searches of rates, comparisons, the gain, slices, exports; and metrics.json."""

from __future__ import annotations

from oscillations.report.results import Report
from oscillations.report.tables.comparison import write_comparisons
from oscillations.report.tables.cross_bit import write_cross_bit
from oscillations.report.tables.exports import write_exports
from oscillations.report.tables.gain import write_gain
from oscillations.report.tables.method_rates import write_method_rates
from oscillations.report.tables.metrics import write_metrics
from oscillations.report.tables.published import write_tables
from oscillations.report.tables.rate_search import write_searches


def write_all(report: Report) -> None:
    """Write all of them."""
    searched, compared = (write_searches, write_method_rates), (write_comparisons, write_gain, write_cross_bit)
    for write in (write_tables, *searched, *compared, write_exports, write_metrics):
        write(report)
