"""
REQUIRED INPUTS: the records of an experiment's runs (each vouches for its checkpoint by hash), data/<dataset>.json,
                 pretrained weights
OUTPUTS: results/<study>/runs/<experiment>/{evaluations.csv,histograms.csv}
"""

# What is asked beside the default; by default nothing, so that what was evaluated before is not asked for again.
ASKED = {"rules": STUDY.cross_bit} if STUDY.slices else {}


rule evaluate:
    """PTQ and cross-bit accuracy on the test split, batch norm kept and re-estimated; weight histograms."""
    input:
        data=lambda wildcards: dataset_files(wildcards.experiment),
        start=lambda wildcards: pretrained_files(wildcards.experiment),
        records=lambda wildcards: [str(run.record) for run in experiment_runs(wildcards.experiment)],
    output:
        update(f"results/{STUDY.study}/runs/{{experiment}}/evaluations.csv"),
        update(f"results/{STUDY.study}/runs/{{experiment}}/histograms.csv"),
    log:
        f"logs/{STUDY.study}/evaluate/{{experiment}}.log",
    benchmark:
        f"logs/{STUDY.study}/evaluate/{{experiment}}.tsv"
    wildcard_constraints:
        experiment="|".join(map(re.escape, STUDY.experiments)),
    threads: STUDY.threads
    resources:
        gpu=GPUS,
        mem_mb=lambda wildcards, attempt: attempt * memory(wildcards.experiment),
        runtime=lambda wildcards, attempt: longer(attempt, evaluation_minutes(wildcards.experiment)),
    params:
        arithmetic=as_json(numerics.versions(["evaluation"]) | ASKED),
        histograms=STUDY.draws_weights,
        study=STUDY_FILE,
    shell:
        "python -m oscillations evaluate --study {params.study} --experiment {wildcards.experiment} > {log} 2>&1"
