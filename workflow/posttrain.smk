"""
REQUIRED INPUTS: the records of the runs that an entry of the study's posttraining names (each vouches for its
                 checkpoint by hash), data/<dataset>.json, pretrained weights
OUTPUTS: results/<study>/posttraining/{<entry>.csv,<entry>-reconstruction.csv}
"""

if STUDY.posttraining:

    rule posttrain:
        """Quantize trained runs with every post-training method of one entry, and measure them."""
        input:
            data=lambda wildcards: sum(map(dataset_files, posttraining_experiments(wildcards.entry)), []),
            start=lambda wildcards: sum(map(pretrained_files, posttraining_experiments(wildcards.entry)), []),
            records=lambda wildcards: [str(run.record) for run in posttraining_runs(wildcards.entry)],
        output:
            update(f"results/{STUDY.study}/posttraining/{{entry}}.csv"),
            update(f"results/{STUDY.study}/posttraining/{{entry}}-reconstruction.csv"),
        log:
            f"logs/{STUDY.study}/posttrain/{{entry}}.log",
        benchmark:
            f"logs/{STUDY.study}/posttrain/{{entry}}.tsv"
        wildcard_constraints:
            entry="|".join(map(re.escape, STUDY.posttraining)),
        threads: STUDY.threads
        resources:
            gpu=GPUS,
            mem_mb=lambda wildcards, attempt: attempt * posttraining_memory(wildcards.entry),
            runtime=lambda wildcards, attempt: longer(attempt, posttraining_minutes(wildcards.entry)),
        params:
            arithmetic=lambda wildcards: arithmetic(*identity.entry_parts(STUDY.posttraining[wildcards.entry])),
            entry=lambda wildcards: as_json(identity.entry_meaning(STUDY.posttraining[wildcards.entry])),
            study=STUDY_FILE,
        shell:
            "python -m oscillations posttrain --study {params.study} --name {wildcards.entry} > {log} 2>&1"
