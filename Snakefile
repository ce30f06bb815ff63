"""
The paper as one DAG: fetch -> train -> evaluate -> oscillations -> tables, figures, claims, site.

    snakemake --cores 8 all                         the study "quick" (params/quick.yaml)
    snakemake --cores 8 all --config study=paper    another study; also only=EXPERIMENT seeds=0,1 source=PATH
    snakemake --cores 8 report --config study=...   tables, figures, claims and site from the records at hand

Targets: all (runs + report), runs, report, data.
"""

from snakemake.utils import min_version

min_version("9.9")


include: "workflow/common.smk"
include: "workflow/fetch.smk"
include: "workflow/train.smk"


localrules:
    all,
    data,
    runs,


rule all:
    default_target: True
    input:
        [file for variant in CHOSEN for run in variant.runs() for file in run_files(run)],


rule data:
    input:
        f"data/{STUDY.data}.json",


rule runs:
    input:
        [file for variant in CHOSEN for run in variant.runs() for file in run_files(run)],
