"""
REQUIRED INPUTS: none (a download, scikit-learn, or source=PATH; for weights a download or weights=PATH)
OUTPUTS: data/<dataset>.json (hash and constants), data/<dataset>.safetensors (all images),
         data/weights/<checkpoint>.json (hash, origin, normalisation), data/weights/<checkpoint>.safetensors
"""


rule fetch:
    """Download or read, check, and convert a dataset to one tensor file."""
    output:
        about="data/{dataset}.json",
        tensors="data/{dataset}.safetensors",
    log:
        "logs/fetch/{dataset}.log",
    benchmark:
        "logs/fetch/{dataset}.tsv"
    wildcard_constraints:
        dataset="[^/]+",
    localrule: True
    params:
        arithmetic=lambda wildcards: arithmetic(f"data/{wildcards.dataset}"),
    shell:
        "python -m oscillations fetch --data {wildcards.dataset} > {log} 2>&1"


rule weights:
    """Download or read, check, and convert a pretrained checkpoint."""
    output:
        about="data/weights/{checkpoint}.json",
        tensors="data/weights/{checkpoint}.safetensors",
    log:
        "logs/weights/{checkpoint}.log",
    benchmark:
        "logs/weights/{checkpoint}.tsv"
    localrule: True
    params:
        code=sources.code("study.pretrained:write"),
        name=lambda wildcards: wildcards.checkpoint.replace("-", "/", 1),
    shell:
        "python -m oscillations weights --name {params.name} > {log} 2>&1"
