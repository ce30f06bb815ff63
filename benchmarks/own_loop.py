"""What oscillations.nn adds to a step of a plain torch loop: python benchmarks/own_loop.py [--models NAME ...]

One thread, batches of 128 at CIFAR-10's shape, torch's fused Adam. All loops of a model take turns, in fresh processes,
since where their memory lies changes a step by a tenth; medians over the processes. ``share``: of the step that the
part is added to. The last row is the time to import oscillations.nn, beyond torch's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from common import alternate, report

from oscillations import models
from oscillations.nn import OscillationMonitor, OsciQuantRegularizer, fake_quantize

LOOPS = ["fp", "fp + monitor", "regularizer", "regularizer + monitor", "qat", "qat + monitor", "lsq"]
MODELS = {  #: options of each, steps at a time, and the loops that are measured
    "mlp5": ({"name": "mlp5"}, 10, LOOPS),
    "resnet18, width 8": ({"name": "resnet18", "width": 8}, 1, LOOPS),
    "resnet18": ({"name": "resnet18"}, 1, LOOPS[:2]),
}
IMPORT = "import time, torch; start = time.perf_counter(); import oscillations.nn; print(time.perf_counter() - start)"


def loop(spec: dict, parts: str, steps: int):
    """A function that makes some steps of a loop with these parts."""
    torch.manual_seed(0)
    model = models.build(spec, (3, 32, 32), 10)
    for method in ("qat", "lsq"):
        if parts.startswith(method):
            fake_quantize(model, 3, method=method)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    regularizer = OsciQuantRegularizer(model, 3) if "regularizer" in parts else lambda: 0.0
    monitor = OscillationMonitor(model, 3) if "monitor" in parts else None
    x, y = torch.randn(128, 3, 32, 32), torch.randint(0, 10, (128,))

    def run():
        for _ in range(steps):
            optimizer.zero_grad()
            (F.cross_entropy(model(x), y) + regularizer()).backward()
            optimizer.step()
            if monitor:
                monitor.step()

    return run


def measure(name: str, rounds: int) -> dict[str, float]:
    """Median milliseconds of processor time per step of every loop, in this process."""
    torch.set_num_threads(1)
    spec, steps, loops = MODELS[name]
    times = alternate({parts: loop(spec, parts, steps) for parts in loops}, rounds, clock=time.process_time)
    return {parts: 1e3 * statistics.median(values) / steps for parts, values in times.items()}


def rows(name: str, found: list[dict[str, float]]) -> list[dict]:
    """A row per loop: medians over the processes."""
    made = []
    for parts in MODELS[name][2]:
        base = parts.removesuffix(" + monitor") if parts.endswith("monitor") else "fp"
        shares = [one[parts] / one[base] - 1 for one in found]
        made.append(
            {
                "model": name, "loop": parts, "step_ms": round(statistics.median(one[parts] for one in found), 2),
                "beside": base, "share": round(statistics.median(shares), 3), "share_low": round(min(shares), 3),
                "share_high": round(max(shares), 3), "processes": len(found),
            }
        )  # fmt: skip
    return made


def imported(times: int = 9) -> float:
    """Median seconds of the import, beyond torch's."""
    found = [
        float(subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, check=True).stdout)
        for _ in range(times)
    ]
    return statistics.median(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--processes", type=int, default=7)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--one", choices=MODELS, help="measure a model in this process and print it")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.rounds)))
        return
    made = []
    for name in options.models:
        again = [sys.executable, __file__, "--one", name, "--rounds", str(options.rounds)]
        made += rows(
            name,
            [
                json.loads(subprocess.run(again, capture_output=True, check=True).stdout)
                for _ in range(options.processes)
            ],
        )
    seconds = round(1e3 * imported(), 1)
    made.append(dict.fromkeys(made[0], "") | {"loop": "import", "step_ms": seconds})
    report("own_loop.csv", made, key=("model", "loop"))


if __name__ == "__main__":
    main()
