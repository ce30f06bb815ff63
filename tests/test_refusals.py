"""Studies that must not start: one line each that names the file, the key and what would be right."""

import copy
import math
import re
from functools import cache

import pytest
import yaml
from conftest import TINY

from oscillations.cli import main
from oscillations.core.errors import InputError
from oscillations.study import reading as studies

VIT = {"name": "vit-tiny", "width": 12, "depth": 1, "heads": 3, "patch_size": 4}
MORE = {
    "fine": {
        "model": {"name": "resnet18", "width": 4},
        "setting": "finetune",
        "start_from": "resnet",
        "methods": {"qat": {"bits": 3}},
    },
    "vit": {"model": VIT, "setting": "scratch", "methods": {"baseline": None, "statsq": {"bits": 3}}},
    "resnet": {"model": {"name": "resnet18", "width": 4}, "setting": "scratch", "methods": {"baseline": None}},
}
PTQ = {"of": ["mlp5-scratch/baseline"], "bits": [3], "methods": {"nearest": None, "mrecg": {"k": 1}}}
H1 = {
    "statement": "It works.",
    "comparisons": [
        {"text": "x", "measure": "accuracy", "of": {"variants": ["mlp5-scratch/qat-3bit"]}, "expect": "above"}
    ],
}
X = MORE["resnet"]
FINE = X | {"setting": "finetune"}
QKR = MORE["vit"] | {"methods": {"statsq": {"bits": 3, "qkr": True}}, "quant_layers": ["*.mlp.fc1"]}
E, V, M = "experiments.mlp5-scratch", "experiments.vit", "experiments.mlp5-scratch.methods"
L, P, H = "experiments.mlp5-lambda", "posttraining.ptq", "hypotheses.H1.comparisons.0"
F = "figures.figure-film-mlp5"
BIG = 10**12


@cache
def base():
    content = yaml.safe_load(TINY)
    content["experiments"] |= MORE
    return content | {"eval_bits": [32, 2, 3, 4], "posttraining": {"ptq": PTQ}, "hypotheses": {"H1": H1}}


# (where a value is put, the value, a part of the message); the message must also hold the place, unless KEYS says
# which key it names instead
BAD = [
    # numbers
    ("training.lr", math.inf, "finite number"),
    ("training.lr", math.nan, "finite number"),
    ("training.lr", True, "valid number"),
    ("training.lr", "1e-3", "a string; write 1.0e-3"),
    ("training.lr", "5E4", "a string; write 5.0e\\+4"),
    ("training.lr", "0.1", "a string; write it without quotes"),
    ("training.lr", 0, "greater than 0"),
    ("training.lr", BIG, "less than or equal to 1000"),
    ("training.batch_size", True, "valid integer"),
    ("training.batch_size", "64", "a string; write it without quotes"),
    ("training.batch_size", 64.0, "valid integer"),
    ("training.batch_size", 64.5, "valid integer"),
    ("training.batch_size", 0, "greater than or equal to 1"),
    ("training.batch_size", BIG, "less than or equal to"),
    ("training.epochs", BIG, "less than or equal to"),
    ("training.epochs", -1, "greater than or equal to 1"),
    ("training.patience", BIG, "less than or equal to"),
    ("training.weight_decay", -0.1, "greater than or equal to 0"),
    ("training.weight_decay", BIG, "less than or equal to 1000"),
    ("training.decay", "matrices", "training: decay: nothing decays without weight_decay"),
    ("training.decay", "matrixes", "'matrixes' is not allowed; did you mean 'matrices'"),
    ("training.optimizer", "adanw", "'adanw' is not allowed; did you mean 'adam"),
    ("training.schedule", "linaer", "'linaer' is not allowed; did you mean 'linear'"),
    ("training.warmup", -1, "greater than or equal to 0"),
    ("training.warmup", "5", "a string; write it without quotes"),
    (f"{E}.training", {"epochs": 4, "warmup": 4}, "training: warmup: 4 of 4 epochs leave none after it"),
    (f"{E}.training", {"warmup_start": 1e-6}, "training: warmup_start: nothing rises without warmup"),
    (
        f"{E}.training",
        {"lr": 1e-3, "warmup": 0.5, "warmup_start": 1e-3},
        "training: warmup_start: 0.001 does not rise to lr 0.001; say less",
    ),
    ("threads", 10**9, "less than or equal to 1024"),
    ("threads", True, "valid integer"),
    ("validation", 0, "greater than 0"),
    ("validation", BIG, "of 1400 training images"),
    ("split_seed", 2**40, "less than or equal to"),
    ("seeds", [2**40], "less than or equal to"),
    ("seeds", [True], "valid integer"),
    ("seeds", [0, -1], "greater than or equal to 0"),
    ("claims", {"match_margin": math.inf}, "match_margin: .*finite number"),
    ("claims", {"collapse": math.nan}, "collapse: .*finite number"),
    ("claims", {"epoch_margin": -1}, "epoch_margin: .*greater than 0"),
    ("toy_regression", {"seeds": [0], "epochs": BIG}, "epochs: .*less than or equal to"),
    (f"{E}.training", {"lr": math.inf}, "lr: .*finite number"),
    (f"{E}.training", {"epochs": BIG}, "epochs: .*less than or equal to"),
    (f"{E}.resize", 10**6, "less than or equal to 1024"),
    (f"{E}.resize", 0, "greater than or equal to 1"),
    (f"{E}.images", {"train": 0, "validation": 1, "test": 1}, "train: .*greater than or equal to 1"),
    (f"{E}.images", {"train": 5, "validation": True, "test": 1}, "validation: .*valid integer"),
    (f"{E}.images", {"train": 5, "test": 1}, "validation: this key is missing"),
    (f"{L}.sweep", {"lambda": [math.nan]}, "lambda.*finite number"),
    (f"{L}.sweep", {"lambda": [0, True]}, "lambda.1: .*valid number"),
    (f"{L}.sweep", {"lambda": [0, 2], "lr": [math.inf]}, "lr.*finite number"),
    (f"{M}.osciquant", {"bits": 3, "lambda": math.nan}, "lambda: .*finite number"),
    (f"{M}.osciquant", {"bits": 3, "lambda": 1e300}, "lambda: .*less than or equal to 10"),
    (f"{M}.osciquant", {"bits": 3, "lambda": "1e-3"}, "lambda: .*write 1.0e-3"),
    (f"{M}.kure", {"bits": 3, "lambda": math.inf}, "lambda: .*finite number"),
    (f"{M}.lsq", {"bits": 3, "scale_lr": math.inf}, "scale_lr: .*finite number"),
    (f"{M}.qat", {"bits": [3, True]}, "bits: .*valid integer"),
    (f"{M}.qat", {"bits": "3"}, "bits: .*write it without quotes"),
    (f"{M}.qat", {"bits": 3.0}, "bits: .*valid integer"),
    (f"{M}.qat", {"bits": [[3]]}, "bits: .*valid integer"),
    (f"{M}.qat", {"bits": 3, "quantize_bias": 1}, "quantize_bias: .*valid boolean"),
    (f"{M}.qat", {"bits": 3, "quantize_bias": "yes"}, "quantize_bias: .*valid boolean"),
    (f"{E}.model", {"name": "mlp5", "width": 0}, "width: .*greater than or equal to 1"),
    (f"{E}.model", {"name": "mlp5", "width": 10**9}, "width: .*less than or equal to"),
    (f"{E}.model", {"name": "mlp5", "width": True}, "width: .*valid integer"),
    (f"{E}.model", {"name": "resnet18", "width": 10**9}, "width: .*less than or equal to"),
    (f"{E}.model", {"name": "mobilenetv2", "width": math.inf}, "width: .*finite number"),
    (f"{E}.model", {"name": "mobilenetv2", "width": 1e9}, "width: .*less than or equal to"),
    (f"{V}.model", VIT | {"depth": BIG}, "depth: .*less than or equal to"),
    (f"{V}.model", VIT | {"width": 3 * BIG}, "width: .*less than or equal to"),
    (f"{V}.model", VIT | {"patch_size": 3}, "patch_size: 3 does not divide images of 8x8; nearest: [24]"),
    (f"{V}.model", VIT | {"patch_size": 16}, "patch_size: 16 does not divide images of 8x8; nearest: 8"),
    (f"{P}.bits", [True], "bits.0: .*valid integer"),
    (f"{P}.methods", {"mrecg": {"k": 50}}, "mrecg: mlp5-scratch/baseline: k: .*only 3 .*can be merged"),
    (f"{P}.methods", {"mrecg": {"k": 4}}, "only 3 .*can be merged"),
    (f"{P}.methods", {"mrecg": {"k": -1}}, "mrecg: k: .*greater than or equal to 0"),
    (f"{P}.methods", {"mrecg": {"k": True}}, "mrecg: k: .*valid integer"),
    (f"{P}.methods", {"adaround": {"iterations": BIG}}, "iterations: .*less than or equal to"),
    (f"{P}.methods", {"adaround": {"lr": math.inf}}, "lr: .*finite number"),
    (f"{P}.methods", {"adaround": {"images": True}}, "images: .*valid integer"),
    (f"{P}.methods", {"adaround": {"nu": "1e-2"}}, "nu: .*write 1.0e-2"),
    (f"{H}.bound", math.inf, "finite number"),
    (
        "hypotheses.H1.comparisons",
        [H1["comparisons"][0] | {"expect": "within"}],
        "0: bound: a margin of equivalence is positive",
    ),
    ("comparisons.mlp5.bits", "3", "write it without quotes"),
    ("comparisons.mlp5.bits", 9, "less than or equal to 8"),
    ("figures.figure5.bits", 8, "8 is not allowed; known: 2, 3, 4"),
    # what stands twice, and what is empty
    ("seeds", [1, 1], "1 stands twice"),
    ("eval_bits", [32, 3, 3], "3 stands twice"),
    ("eval_bits", [], "must hold 32"),
    ("toy_regression", {"seeds": [0, 0]}, "seeds: 0 stands twice"),
    ("experiments", {}, "at least 1 item"),
    ("tables.table1", ["mlp5-scratch", "mlp5-scratch"], "'mlp5-scratch' stands twice"),
    ("tables.table1", [], "at least 1 item"),
    ("figures.figure3.panels", ["mlp5-scratch/qat-3bit"] * 2, "'mlp5-scratch/qat-3bit' stands twice"),
    ("figures.figure3.panels", [], "at least 1 item"),
    ("figures.figure2.panels", ["mlp5-scratch/baseline"], "mlp5-scratch/baseline has no grid"),
    (f"{E}.histograms", "fc9.weight", "unknown quantized weight 'fc9.weight'; did you mean 'fc"),
    (f"{E}.histograms", "fc2", "unknown quantized weight 'fc2'; known: fc1.weight, fc2.weight"),
    (f"{E}.histograms", "fc2.bias", "unknown quantized weight 'fc2.bias'; did you mean 'fc2.weight'"),
    ("experiments.resnet.histograms", "fc2.weight", "unknown quantized weight 'fc2.weight'; did you mean 'fc.weight'"),
    ("experiments.resnet.histograms", "conv1.weight", "none of the methods has a grid: baseline"),
    (f"{F}.panels", ["mlp5-scratch/baseline"], "mlp5-scratch/baseline has no grid"),
    (f"{F}.panels", ["mlp5-scratch/qat"], "unknown variant 'mlp5-scratch/qat'; did you mean"),
    (
        f"{F}.layer",
        "fc3.weight",
        "mlp5-scratch/qat-3bit does not record 'fc3.weight'; .*mlp5-scratch.histograms is fc2.weight",
    ),
    (
        F,
        {"layer": "fc2.weight", "panels": ["vit/statsq-3bit"]},
        "layer: vit/statsq-3bit does not record 'fc2.weight'; experiments.vit.histograms is not set",
    ),
    ("figures.figure5.bits", 4, "no osciquant at 4 bits in its experiments; there at 3 bits"),
    ("figures.figure5", {"experiments": ["vit"], "bits": 3}, "figure5.bits.*none of them trains it"),
    ("figures.figure5.experiments", ["mlp5-lambda"] * 2, "'mlp5-lambda' stands twice"),
    ("comparisons.mlp5.experiments", ["mlp5-scratch"] * 2, "'mlp5-scratch' stands twice"),
    ("comparisons.mlp5.posttraining", ["ptq"] * 2, "'ptq' stands twice"),
    ("rate_searches.mlp5-scratch", ["mlp5-scratch"] * 2, "'mlp5-scratch' stands twice"),
    ("fitted", [["mlp5", "scratch", "ptq", 3]] * 2, "stands twice"),
    (f"{E}.seeds", [0, 0], "0 stands twice"),
    (f"{E}.classes", [1, 1], "1 stands twice"),
    (f"{E}.classes", [1], "at least 2 items"),
    (f"{E}.classes", [0, True], "valid integer"),
    (f"{E}.classes", [0, -1], "digits has no class number -1; 0 to 9"),
    (f"{E}.quant_layers", ["fc1", "fc1"], "'fc1' stands twice"),
    (f"{E}.quant_layers", [], "at least 1 item"),
    (f"{E}.methods", {}, "at least 1 item"),
    (f"{L}.sweep", {"lambda": [1, 1.0]}, "lambda: 1.0 stands twice"),
    (f"{L}.sweep", {"lambda": [1, 1.0000001]}, "two of its points are both named osciquant-3bit-lambda1;"),
    (f"{M}.qat", {"bits": [3, 3]}, "bits: 3 stands twice"),
    (f"{M}.kure", {"bits": 3, "lambda": 1, "reg_layers": ["fc1", "fc1"]}, "reg_layers: 'fc1' stands twice"),
    (f"{M}.kure", {"bits": 3, "lambda": 1, "reg_layers": []}, "reg_layers: the list is empty; known: fc1"),
    (f"{P}.of", [], "at least 1 item"),
    (f"{P}.of", ["mlp5-scratch/baseline"] * 2, "'mlp5-scratch/baseline' stands twice"),
    (f"{P}.bits", [3, 3], "3 stands twice"),
    (f"{P}.bits", [], "at least 1 item"),
    (f"{P}.methods", {}, "at least 1 item"),
    (f"{P}.methods", {"mrecg": {"scheme": []}}, "scheme: .*at least 1 item"),
    (f"{P}.methods", {"mrecg": {"scheme": [["fc1", "fc3"]]}}, "not two or more neighbours"),
    (f"{P}.methods", {"mrecg": {"scheme": [["fc1", "fc7"]]}}, "no unit 'fc7'; did you mean 'fc"),
    (f"{P}.methods", {"mrecg": {"scheme": "relased"}}, "scheme: 'relased' is not allowed; did you mean 'released'"),
    (f"{P}.methods", {"mrecg": {"scheme": [["fc1", 2]]}}, "scheme.0.1: .*valid string"),
    (f"{H}.of.variants", [], "at least 1 item"),
    (f"{H}.of.variants", ["mlp5-scratch/qat-3bit"] * 2, "'mlp5-scratch/qat-3bit' stands twice"),
    ("hypotheses.H1.comparisons", [], "at least 1 item"),
    # names that nothing has
    ("title", 2020, "valid string"),
    ("published", False, "False is not allowed"),
    ("published", "papr", "'papr' is not allowed; did you mean 'paper'"),
    ("study", "../tiny", "should match"),
    ("study", "Tiny", "should match"),
    ("data", "../digits", "unknown dataset '../digits'; did you mean 'digits'"),
    ("data", "sources", "unknown dataset 'sources'"),
    ("data", None, "valid string"),
    ("data", ["digits"], "valid string"),
    ("extends", "../../../etc/passwd", "no such study"),
    ("extends", "", "no such study"),
    ("extends", ["tiny"], "no such study"),
    ("extends", 3, "no such study"),
    ("extends", "tiny", "one level is the limit"),
    ("reference", "../../x", "no such study"),
    ("reference", "tiny", "itself"),
    ("reference", "tinny", "did you mean 'tiny'"),
    (f"{E}.model", {"name": "timm/no_such_model_x"}, "model.name: timm has no classifier 'no_such_model_x'"),
    (f"{E}.model", {"name": "timm/resnet19"}, "model.name: timm has no .*did you mean 'resnet1"),
    (f"{E}.model", {"name": "torchvision/resnet19"}, "model.name: .*did you mean 'resnet1"),
    (f"{E}.model", {"name": "timm"}, "model.name: .*unknown model 'timm'"),
    (f"{E}.model", {"name": "timm/"}, "model.name: timm has no classifier ''"),
    (f"{E}.model", {"name": "_resnet"}, "model.name: unknown model '_resnet'; did you mean 'resnet18'"),
    (f"{E}.model", {"name": "library"}, "model.name: unknown model 'library'"),
    (f"{E}.model", {"name": "../mlp5"}, "model.name: unknown model '../mlp5'; did you mean 'mlp5'"),
    (f"{E}.model", {"name": ["mlp5"]}, "model: name is missing"),
    (f"{E}.model", "mlp5", "must be a mapping of keys"),
    (f"{E}.model", {"name": "torchvision/resnet18", "arguments": {"weights": "DEFAULT"}}, "arguments.weights: "),
    (f"{E}.model", {"name": "timm/resnet18", "arguments": {"pretrained": True}}, "arguments.pretrained: "),
    (f"{E}.model", {"name": "torchvision/resnet18", "arguments": {"widht": 3}}, "torchvision/resnet18: .*widht"),
    (f"{E}.model", {"name": "torchvision/resnet18", "arguments": {"a": [1]}}, "arguments.a: "),
    (f"{E}.model", {"name": "torchvision/resnet18"}, "does not take images of 1x8x8"),
    (
        "experiments.x",
        FINE | {"pretrained": "torchvision/resnet81"},
        "x.pretrained: torchvision has no pretrained classifier 'resnet81'; did you mean 'resnet",
    ),
    (
        "experiments.x",
        FINE | {"pretrained": "resnet18"},
        "x.pretrained: 'resnet18' is not timm/NAME or torchvision/NAME; did you mean 'torchvision/resnet18'",
    ),
    (f"{E}.setting", "scrath", "'scrath' is not allowed; did you mean 'scratch'"),
    (f"{E}.methods", None, "must be a mapping"),
    (f"{E}.methods", ["qat"], "must be a mapping"),
    (f"{M}.__init__", None, "unknown method '__init__'"),
    (f"{M}.../x", None, "unknown method '../x'"),
    (f"{M}.osciquant_freezing", {"bits": 3}, "unknown method 'osciquant_freezing'; did you mean 'osciquant-freezing'"),
    (f"{M}.qat", [3], "must be a mapping"),
    (f"{M}.qat", {3: 3}, "valid string"),
    (f"{E}.quant_layers", ["conv*"], r"'conv\*' matches no layer; known: fc1"),
    ("experiments.x", FINE | {"start_from": "x"}, "x.start_from: x must train one baseline from scratch"),
    (
        "experiments.x",
        FINE | {"start_from": "reset"},
        "x.start_from: unknown experiment 'reset'; did you mean 'resnet'",
    ),
    ("experiments.x", FINE, "setting: finetune needs start_from or pretrained"),
    (f"{E}.start_from", "resnet", "not with setting: scratch"),
    (f"{E}.data", "", "unknown dataset ''"),
    ("experiments.resnet.model", {"name": "resnet18", "stem": "cfar"}, "model: stem: 'cfar' is not allowed; did you"),
    (f"{E}.data", "cifar", "unknown dataset 'cifar'; did you mean 'cifar10'"),
    (f"{L}.methods", {"qat": {"bits": 3}}, "sweep.lambda: none of the methods has a lambda"),
    (f"{L}.sweep", {"lamda": [1]}, "'lamda' is not allowed; did you mean 'lambda'"),
    (f"{E}.activations", {"bits": 1}, "bits: .*greater than or equal to 2"),
    (f"{E}.activations", {"bit": 3}, "activations: unknown key 'bit'; did you mean 'bits'"),
    (f"{E}.activations", {"bits": 3, "first_last": 16}, "first_last: .*less than or equal to 8"),
    ("experiments.resnet.activations", {"bits": 3}, "fine.start_from: resnet quantizes activations"),
    (f"{E}.first_last_bits", 9, "less than or equal to 8"),
    (f"{V}.first_last_bits", 8, "neither patch_embed.proj nor head is quantized; see quant_layers"),
    (
        "experiments.x",
        QKR | {"activations": {"bits": 3}, "quant_layers": None},
        "activations: the product of weights .qkr.",
    ),
    (f"{P}.methods", {"nearest": {"activations": {"bits": 4, "lr": 1.0}}}, "unknown key 'lr'"),
    ("experiments.A b", X, "should match"),
    ("experiments.a/b", X, "should match"),
    ("experiments.x", None, "must be a mapping of keys"),
    ("experiments.x", [], "must be a mapping of keys"),
    (f"{M}.statsq", {"bits": 3, "qkr": True}, "qkr: mlp5 has none of timm's attention layers; leave qkr out"),
    (V, QKR, "vit.methods.statsq: qkr: blocks.0.attn.qkv is not quantized; add it to"),
    ("tables.table9", ["mlp5-scratch"], "'table9' is not allowed; did you mean 'table"),
    ("figures.figure2.layer", "fc*.weight", r"'fc\*' is no layer"),
    ("figures.figure2.layer", "fc2.bias", "'fc2.bias' is no layer of mlp5-scratch/qat-3bit; did you mean 'fc2'"),
    (
        "figures.figure2",
        {"layer": "fc2.weight", "panels": ["mlp5-scratch/qat-3bit", "fine/qat-3bit"]},
        "layer: 'fc2' is no layer of fine/qat-3bit",
    ),
    ("figures.figure7-", {"panels": ["mlp5-scratch/qat-3bit"]}, "a label is lower-case"),
    ("not_run", {"mlp5-scrach": "x"}, "unknown experiment 'mlp5-scrach'; did you mean 'mlp5-scratch'"),
    ("not_run", ["mlp5-scratch"], "must be a mapping of keys"),
    ("fitted", [["mlp6", "scratch", "ptq", 3]], "'mlp6' is not allowed; did you mean 'mlp5'"),
    ("fitted", [["mlp5", "scrach", "ptq", 3]], "'scrach' is not allowed; did you mean 'scratch'"),
    ("fitted", [["mlp5", "scratch", "ptqq", 3]], "'ptqq' is not allowed; did you mean 'ptq'"),
    ("fitted", [["mlp5", "scratch", "ptq", 5]], "5 is not allowed; known: "),
    ("fitted", [["mlp5", "scratch", "ptq"]], "this key is missing"),
    (f"{P}.of", ["mlp5-scratch/basline"], "unknown variant 'mlp5-scratch/basline'; did you mean"),
    (f"{P}.methods", {"reconstruction": None}, "unknown method 'reconstruction'"),
    (f"{P}.methods", {"x": {"method": ["brecq"]}}, "unknown method \\['brecq'\\]; did you mean 'brecq'"),
    (f"{P}.methods", {"../x": None}, "should match"),
    ("posttraining.A", PTQ, "should match"),
    (f"{H}.of.variants", ["mlp5-scratch/qat-3bti"], "unknown variant 'mlp5-scratch/qat-3bti'; did you mean"),
    (f"{H}.of.bits", 8, "8 is not among eval_bits"),
    (f"{H}.of.bits", 5, "5 is not allowed"),
    (f"{H}.than", {"of": {"variants": ["x"]}}, "unknown variant 'x'"),
    ("hypotheses.a/b", H1, "should match"),
    ("comparisons.mlp5.experiments", ["mlp5-scratch", "resnet"], "one model to a table"),
    ("comparisons.mlp5.posttraining", ["pqt"], "unknown entry 'pqt'; did you mean 'ptq'"),
    # keys that nothing has
    ("sedes", [1], "unknown key 'sedes'; did you mean 'seeds'"),
    (5, 1, "unknown key 5"),
    (True, 1, "unknown key True"),
    ("claims", {"margin": 1}, "unknown key 'margin'"),
    (f"{E}.images", {"train": 1, "validation": 1, "test": 1, "tset": 1}, "unknown key 'tset'; did you mean 'test'"),
    (f"{H}.of.bit", 3, "unknown key 'bit'; did you mean 'bits'"),
    (f"{P}.method", {}, "unknown key 'method'; did you mean 'methods'"),
    ("toy_regression", {"seed": [0]}, "unknown key 'seed'; did you mean 'seeds'"),
]

TEXTS = {
    "empty": (b"", "a study is a mapping of keys"),
    "a list": (b"- study: tiny\n", "a study is a mapping of keys"),
    "a word": (b"tiny", "a study is a mapping of keys"),
    "two documents": (b"study: tiny\n---\nstudy: tiny\n", "not valid YAML: .*line 2"),
    "a tab": (b"study: tiny\ntraining:\n\tlr: 1\n", "not valid YAML: .*line 3"),
    "an anchor to nothing": (b"study: *tiny\n", "not valid YAML: .*undefined alias.*line 1"),
    "a merge of no mapping": (b"study: tiny\ntraining: {<<: 3}\n", "not valid YAML: .*line 2"),
    "a key twice": (b"study: tiny\nstudy: tiny\n", "key 'study' stands twice"),
    "a list as key": (b"study: tiny\n? [a]\n: 1\n", "not valid YAML: .*unhashable key.*line 2"),
    "bytes that are no text": (b"study: \xff\xfe\n", "not UTF-8"),
    "a control character": (b"study: \x00\n", "not valid YAML"),
    "a day that is none": (b"title: 2020-13-45\n", "not valid YAML: .*month"),
    "a number beyond counting": (b"seeds: [" + b"9" * 5000 + b"]\n", "not valid YAML: "),
    "an octal number": (b"seeds: [010]\n", "not valid YAML: '010' is not a plain decimal number .line 1"),
    "a number to base 60": (b"threads: 1:30\n", "not valid YAML: '1:30' is not a plain decimal number"),
    "an object": (b"title: !!python/name:os.system\n", "not valid YAML: .*line 1"),
    "too deep": (b"title: " + b"[" * 5000 + b"]" * 5000, "not valid YAML: nested too deeply"),
    "an endless mapping": (b"experiments: &a {mlp5: *a}\n", "not valid YAML: .*recursive.*line 1"),
}


def put(content, place, value):
    """A copy of the study with ``value`` at a dotted place; what leads there is made."""
    content = copy.deepcopy(content)
    *keys, last = place.replace(".../", ".\0/").split(".") if isinstance(place, str) else [place]
    inner = content
    for key in keys:
        inner = inner[int(key)] if isinstance(inner, list) else inner.setdefault(key, {})
    inner[last.replace("\0", "..") if isinstance(last, str) else last] = value
    return content


def refusal(file):
    with pytest.raises(InputError) as error:
        studies.load(file)
    return str(error.value)


def write(tmp_path, content):
    file = tmp_path / "tiny.yaml"
    text = yaml.safe_dump(content, sort_keys=False)
    file.write_text(text)
    return file


def test_the_study_without_a_fault_is_valid(tmp_path):
    studies.load(write(tmp_path, base()))


@pytest.mark.parametrize(("place", "value", "message"), BAD, ids=[f"{place}-{value}"[:60] for place, value, _ in BAD])
def test_a_bad_value_is_refused_in_one_line(tmp_path, place, value, message):
    file = write(tmp_path, put(base(), place, value))
    error = refusal(file)
    assert error.startswith(f"{file}: ") and "\n" not in error and len(error) < 1000, error
    assert re.search(message, error), error
    key = [part for part in str(place).split(".") if place == 5 or not part.isdigit()][-1]
    assert key in error.removeprefix(f"{file}: "), error


@pytest.mark.parametrize("case", TEXTS)
def test_a_bad_text_is_refused_in_one_line(tmp_path, case):
    file, (text, message) = tmp_path / "tiny.yaml", TEXTS[case]
    file.write_bytes(text)
    error = refusal(file)
    assert error.startswith(f"{file}: ") and "\n" not in error, error
    assert re.search(message, error), error


def test_the_command_refuses_without_a_traceback(tmp_path, capsys):
    file = write(tmp_path, put(base(), "threads", 10**9))
    assert main(["check", "--study", str(file)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"error: {file}: threads: Input should be less than or equal to 1024 (found 1000000000)\n"


def test_another_study_is_checked_too_and_may_refer_back(tmp_path):
    """Two studies that refer to each other ended in an endless recursion."""
    content = base() | {"reference": "other"}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(base() | {"study": "other", "reference": "tiny"}))
    studies.load(write(tmp_path, content))
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(base() | {"study": "other", "sedes": 1}))
    assert refusal(tmp_path / "tiny.yaml").startswith(f"{tmp_path / 'other.yaml'}: unknown key 'sedes'")


def test_a_fault_of_the_study_that_is_extended_names_its_file(tmp_path):
    parent = base() | {"study": "parent", "seeds": [0, 0]}
    (tmp_path / "parent.yaml").write_text(yaml.safe_dump(parent))
    error = refusal(write(tmp_path, {"extends": "parent", "study": "tiny", "title": "another"}))
    assert error == f"{tmp_path / 'parent.yaml'}: seeds: 0 stands twice", error


def test_a_folder_is_no_study(tmp_path, capsys):
    (tmp_path / "tiny.yaml").mkdir()
    assert main(["check", "--study", str(tmp_path / "tiny.yaml")]) == 2
    assert "tiny.yaml: no such study" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [["train"], ["evaluate", "--experiment", "mlp5-scratch"], ["posttrain", "--name", "ptq"]]
)
def test_a_device_that_is_not_there_is_one_line(tmp_path, monkeypatch, capsys, command):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main([*command, "--study", str(tmp_path / "any.yaml"), "--device", "cuda"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: device=cuda: torch finds no CUDA device here") and said.count("\n") == 1
