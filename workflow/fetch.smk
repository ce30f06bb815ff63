"""
REQUIRED INPUTS: none (a download, scikit-learn, or source=PATH)
OUTPUTS: data/<dataset>.json (hash and constants), data/<dataset>.safetensors (all images)
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
    params:
        code=lambda wildcards: fingerprint(f"datasets.{wildcards.dataset.replace('-', '_')}", "datasets"),
    shell:
        "python -m oscillations fetch --data {wildcards.dataset} > {log} 2>&1"
