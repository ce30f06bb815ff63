"""
REQUIRED INPUTS: the records of the runs that an entry of the study's exports names (each vouches for its checkpoint by
                 hash), data/<dataset>.json, pretrained weights
OUTPUTS: results/<study>/exports/<entry>.csv; on request only: snakemake exports --config study=...
"""

if STUDY.exports:

    rule export:
        """Write runs as files for elsewhere, try them, and measure what they cost and give."""
        input:
            data=lambda wildcards: sum(map(dataset_files, exported_experiments(wildcards.entry)), []),
            start=lambda wildcards: sum(map(pretrained_files, exported_experiments(wildcards.entry)), []),
            records=lambda wildcards: [
                str(run.record) for run in SHOWN if STUDY.exports[wildcards.entry].takes(run.path, run.seed)
            ],
        output:
            f"results/{STUDY.study}/exports/{{entry}}.csv",
        log:
            f"logs/{STUDY.study}/export/{{entry}}.log",
        benchmark:
            f"logs/{STUDY.study}/export/{{entry}}.tsv"
        wildcard_constraints:
            entry="|".join(map(re.escape, STUDY.exports)),
        threads: STUDY.threads
        resources:
            mem_mb=lambda wildcards, attempt: attempt * export_memory(wildcards.entry),
            runtime=lambda wildcards, attempt: longer(attempt, export_minutes(wildcards.entry)),
        params:
            entry=lambda wildcards: as_json(STUDY.exports[wildcards.entry].model_dump(mode="json", exclude_none=True)),
            study=STUDY_FILE,
        shell:
            "python -m oscillations export --study {params.study} --name {wildcards.entry} > {log} 2>&1"
