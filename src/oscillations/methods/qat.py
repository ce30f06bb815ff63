"""Quantization-aware training with the straight-through estimator (Eq. 4)."""

from __future__ import annotations

from oscillations.engine.method import Method, Moment, Quantizer, ScaleGradientOptions, Tensors


class QAT(Method):
    """Forward and backward pass on q(w); the gradient of q(w) is the latent weights' gradient.

    That is the straight-through estimator without any autograd through the quantizer. With
    ``scale_grad: flow`` the part that reaches max|w| through the scale is added in closed form
    (as in the official code's quantizer, whose scale is not detached).
    """

    Options = ScaleGradientOptions
    options: ScaleGradientOptions

    def forward_weights(self, quantizer: Quantizer) -> Tensors:
        return quantizer.quantized

    def after_backward(self, quantizer: Quantizer, grads: Tensors, moment: Moment) -> None:
        if self.options.scale_grad == "flow":
            for i, grad in enumerate(grads):
                error = quantizer.error(i, out=quantizer.quantized[i])  # q is not needed again before the next update
                quantizer.scale.add_gradient(i, grad, upstream=grad, error=error)
