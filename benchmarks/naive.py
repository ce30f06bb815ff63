"""The same training for comparison: the obvious way, by autograd through a parametrized quantizer, and the authors'."""

from __future__ import annotations

from contextlib import redirect_stdout

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize


class RoundSTE(torch.autograd.Function):
    """Rounding with the identity as gradient."""

    @staticmethod
    def forward(ctx, u):
        return torch.round(u)

    @staticmethod
    def backward(ctx, grad):
        return grad


class FakeQuantize(nn.Module):
    """q(w) of Eq. 1-2 as a parametrization that can be switched off."""

    def __init__(self, bits: int, detach: bool):
        super().__init__()
        self.limit, self.detach, self.enabled = 2 ** (bits - 1) - 1, detach, True

    def quantize(self, weight):
        scale = weight.abs().max() / self.limit
        if self.detach:
            scale = scale.detach()
        return RoundSTE.apply(weight / scale) * scale

    def forward(self, weight):
        return self.quantize(weight) if self.enabled else weight


def with_torchao(layer: nn.Module, bits: int) -> nn.Module:
    """The layer with torchao's QAT fake quantizer on its weight (symmetric, one scale per output channel)."""
    from torchao.quantization.qat import IntxFakeQuantizeConfig, IntxFakeQuantizer
    from torchao.quantization.quant_primitives import TorchAODType

    class Quantize(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = IntxFakeQuantizer(IntxFakeQuantizeConfig(TorchAODType[f"INT{bits}"], "per_channel"))

        def forward(self, weight):
            return self.inner(weight.flatten(1)).view_as(weight)

    parametrize.register_parametrization(layer, "weight", Quantize())
    return layer


def with_brevitas(layer: nn.Module, bits: int) -> nn.Module:
    """Brevitas's layer of the same shape, its weight quantizer per tensor with a scale from the largest weight."""
    from brevitas import nn as quantized
    from brevitas.quant import Int8WeightPerTensorFloat

    options = {"weight_quant": Int8WeightPerTensorFloat, "weight_bit_width": bits, "bias": layer.bias is not None}
    if isinstance(layer, nn.Linear):
        return quantized.QuantLinear(layer.in_features, layer.out_features, **options)
    shape = {key: getattr(layer, key) for key in ("in_channels", "out_channels", "kernel_size", "stride", "padding")}
    return quantized.QuantConv2d(**shape, **options)


class NaiveTrainer:
    """One network, one method ("fp", "qat", "osciquant"), one optimizer step at a time.

    ``form`` is who quantizes in QAT: the parametrization above ("naive"), "torchao" or "brevitas".
    """

    def __init__(
        self, model: nn.Module, method: str, *, form: str = "naive", bits: int = 3, detach: bool = False,
        lam: float = 1.0, mean: bool = True,
    ):  # fmt: skip
        self.model, self.method, self.lam, self.mean = model, method, lam, mean
        self.layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
        if method != "fp" and form == "naive":
            for layer in self.layers:
                quantizer = FakeQuantize(bits, detach)
                quantizer.enabled = method == "qat"
                parametrize.register_parametrization(layer, "weight", quantizer)
        elif method != "fp":
            replace = {"torchao": with_torchao, "brevitas": with_brevitas}[form]
            for name, layer in list(model.named_modules()):
                if layer in self.layers:
                    parent, _, child = name.rpartition(".")
                    setattr(model.get_submodule(parent), child, replace(layer, bits))
        self.optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def step(self, x, y):
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(x), y)
        if self.method == "osciquant":
            loss = loss + self.lam * sum(self.penalty(layer) for layer in self.layers)
        loss.backward()
        self.optimizer.step()

    def penalty(self, layer):
        quantizer, weight = layer.parametrizations.weight[0], layer.parametrizations.weight.original
        difference = quantizer.quantize(weight) ** 2 - weight**2
        return difference.mean() if self.mean else 0.5 * difference.sum()


class OfficialTrainer:
    """The authors' package in the loop of its notebook, which reads loss and hits in every step.

    Needs a checkout of saintslab/OsciQuant on ``PYTHONPATH``.
    """

    def __init__(self, model: nn.Module, method: str):
        from osciquant.handler import attach_weight_quantizers
        from osciquant.quantizers import UniformQuantizer
        from osciquant.regularization import OsciQuantLoss

        self.model, self.criterion = model, nn.CrossEntropyLoss()
        self.loss, self.hits = 0.0, 0
        if method != "fp":
            with redirect_stdout(None):
                attach_weight_quantizers(model, [], UniformQuantizer(3), enabled=method == "qat")
        if method == "osciquant":
            self.criterion = OsciQuantLoss(self.criterion, model)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def step(self, x, y):
        self.optimizer.zero_grad()
        output = self.model(x)
        loss = self.criterion(output, y)
        loss.backward()
        self.optimizer.step()
        self.loss += loss.item()
        self.hits += output.argmax(1).eq(y).sum().item()


def image_loader(images: np.ndarray, labels: np.ndarray, mean, std, batch_size: int, workers: int):
    """torchvision's way: PIL image, ToTensor, Normalize per item; a DataLoader with ``workers`` processes."""
    from PIL import Image
    from torchvision import transforms
    from torchvision.datasets import VisionDataset

    class Images(VisionDataset):
        def __len__(self):
            return len(labels)

        def __getitem__(self, index):
            return self.transform(Image.fromarray(images[index])), int(labels[index])

    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    dataset = Images(root=".", transform=transform)
    return torch.utils.data.DataLoader(dataset, batch_size=batch_size, shuffle=True, num_workers=workers)
