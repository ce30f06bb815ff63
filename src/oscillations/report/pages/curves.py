"""Curves over epochs as small SVGs that follow the page's colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 340, 190  # of a chart, in CSS pixels
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 10, 34  # margins


@dataclass(frozen=True)
class Curve:
    """One line: epochs and values (NaN: none); ``color`` is a number of the page's palette, ``label`` for its key."""

    epochs: Sequence[float]
    values: Sequence[float]
    color: int = 0
    label: str = ""
    seed: int = 0


def chart(curves: Sequence[Curve], quantity: str) -> Markup:
    """Lines over epochs with axes; ``quantity`` names the values and their unit. Nothing without a number."""
    points = [(x, y) for curve in curves for x, y in zip(curve.epochs, curve.values) if math.isfinite(y)]
    if not points:
        return Markup("")
    last = max(x for x, _ in points)
    marks = ticks(min(y for _, y in points), max(y for _, y in points))
    low, high = marks[0], marks[-1]

    def at(x: float, y: float) -> str:
        across = LEFT + (WIDTH - LEFT - RIGHT) * x / max(last, 1)
        down = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - low) / (high - low)
        return f"{across:.0f},{down:.1f}"

    def line(curve: Curve) -> str:
        path = " ".join(at(x, y) for x, y in zip(curve.epochs, curve.values) if math.isfinite(y))
        return (
            f'<polyline class="c{curve.color}" data-seed="{curve.seed}" points="{path}">'
            f"<title>{escape(f'{curve.label} seed {curve.seed}'.strip())}</title></polyline>"
        )

    rules = [f'<path d="M{at(0, mark)}H{WIDTH - RIGHT}"/>' for mark in marks]
    texts = [f'<text class="y" x="{LEFT - 5}" y="{at(0, mark).split(",")[1]}" dy="4">{mark:g}</text>' for mark in marks]
    ends = sorted({1, *(mark for mark in ticks(0, last) if mark <= last and mark == int(mark) and mark)})
    texts += [f'<text x="{at(end, low).split(",")[0]}" y="{HEIGHT - BOTTOM + 15}">{end:g}</text>' for end in ends]
    texts.append(f'<text x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 3}">epoch</text>')
    labels = {curve.label: curve.color for curve in curves if curve.label}
    key = " ".join(f'<span class="c{color}">{escape(label)}</span>' for label, color in labels.items())
    return Markup(
        f'<figure class="curves"><figcaption>{escape(quantity)} {key}</figcaption>'
        f'<svg role="img" aria-label="{escape(quantity)} over epochs" viewBox="0 0 {WIDTH} {HEIGHT}">'
        f'<g class="rules">{"".join(rules)}</g>{"".join(map(line, curves))}{"".join(texts)}</svg></figure>'
    )


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """About so many round numbers that span an interval."""
    span = (high - low) or abs(high) or 1.0
    rough = span / wanted
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(step * k, 10) for k in range(first, max(last, first + 1) + 1)]
