"""Full-precision training. Post-training quantization (PTQ) is an evaluation of its checkpoint."""

from oscillations.engine.method import Method


class Baseline(Method):
    """Trains the weights as they are; the best epoch is picked by full-precision validation accuracy."""
