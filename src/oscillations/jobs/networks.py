"""Networks of a study's runs: at their start, and with what a finished run has learned."""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from oscillations import methods, models
from oscillations.core.errors import InputError
from oscillations.engine.layers import load_weights
from oscillations.engine.network import Network, of_model
from oscillations.engine.recipe import Recipe
from oscillations.records.plans import vouches_for
from oscillations.study import pretrained
from oscillations.study.paths import Run
from oscillations.study.variants import Variant


def make_network(
    recipe: Recipe, seed: int, about: dict[str, Any], device: torch.device, start: dict[str, Tensor] | None = None
) -> Network:
    """The network of one run, ready to start: seeded, built, and filled from ``start`` weights if given.

    ``about`` describes the dataset (:func:`oscillations.datasets.read`). A fine-tune keeps its own, new head. The same
    seed gives every method the same initial weights and the same order of the data.
    """
    classes = about["classes"] if recipe.classes is None else recipe.classes
    channels, height, width = about["image_shape"]
    if recipe.resize:
        height = width = recipe.resize
    torch.manual_seed(seed)
    model = models.build(recipe.model.plain(), (channels, height, width), len(classes))
    if start is not None:
        load_weights(model, start, models.head(recipe.model.name, model))
    # convolutions are faster so, on CPUs too
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
    method = methods.find(recipe.method.name)(recipe.method.options)
    return Network(model, method, recipe.quant_layers, recipe.activations, recipe.first_last_bits)


def new_network(variant: Variant, run: Run, about: dict[str, Any], device: torch.device) -> Network:
    """The network of a run at its start, filled from the weights it starts from."""
    start = None
    if checkpoint := variant.recipe.pretrained:
        start = pretrained.read(checkpoint.name)
    elif parent := variant.parent(run.seed):
        start = of_model(load_checkpoint(parent))
    return make_network(variant.recipe, run.seed, about, device, start)


def trained(
    variant: Variant, run: Run, about: dict[str, Any], device: torch.device, checkpoint: str = "checkpoint"
) -> Network:
    """The network that a checkpoint of the run holds."""
    network = new_network(variant, run, about, device)
    network.load_trained(load_checkpoint(run, checkpoint))
    return network


def load_checkpoint(run: Run, checkpoint: str = "checkpoint") -> dict[str, torch.Tensor]:
    """Weights of a finished run, by their checkpoint's name, checked against its record."""
    files = run.checkpoints([checkpoint])
    if not vouches_for(run.record, files):
        raise InputError(
            f"{files[checkpoint]}: missing, or not the checkpoint that {run.record} vouches for; "
            f"bring it back with dvc checkout (or dvc pull), or make it again with:\n  {run.command}"
        )
    return load_file(files[checkpoint])
