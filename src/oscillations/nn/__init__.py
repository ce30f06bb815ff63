"""The oscillation methods in a training loop of one's own: for any torch model, optimizer and loop.

``OsciQuantRegularizer`` is a term of the loss, ``fake_quantize`` lets layers compute on quantized weights, ``at_bits``
evaluates at any width, and ``OscillationMonitor`` counts. They need torch and no part of the workflow.
"""

from oscillations.nn.fake_quantize import at_bits, fake_quantize
from oscillations.nn.monitor import OscillationMonitor
from oscillations.nn.regularizer import OsciQuantRegularizer

__all__ = ["OsciQuantRegularizer", "OscillationMonitor", "at_bits", "fake_quantize"]
