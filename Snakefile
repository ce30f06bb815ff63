"""
The paper as one DAG: fetch -> train -> evaluate, posttrain -> oscillations -> tables, figures, films, claims, site.

    snakemake --cores 8 all                         the study "quick" (params/quick.yaml)
    snakemake --cores 8 all --config study=paper    another study; also only=EXPERIMENT seeds=0,1 source=PATH
                                                    weights=PATH
    snakemake --cores 8 report --config study=...   tables, figures, claims and site from the records at hand

Targets: all (runs + report), runs, report, data, exports.
"""

from snakemake.utils import min_version

min_version("9.9")


report: "workflow/report/workflow.rst"


# Built here from apptainer.def (docs/workflow.md), published nowhere; used only with --software-deployment-method apptainer.
container: config.get("container", "oscillations.sif")


include: "workflow/common.smk"
include: "workflow/fetch.smk"
include: "workflow/train.smk"
include: "workflow/evaluate.smk"
include: "workflow/posttrain.smk"
include: "workflow/export.smk"
include: "workflow/report.smk"


# A limit (a profile's "resources:") holds on one machine, on a cluster in one job.
resource_scopes:
    gpu="local",
    trainings="local",


# Rules that are short, or need a network that nodes of a cluster may not have, are "localrule" each: a list of names here
# would not be renamed with the rules of a module.
rule all:
    """Runs and report of the study, narrowed by only= and seeds=."""
    default_target: True
    input:
        missing,
        rules.site.output.study,
    localrule: True


rule data:
    """The study's datasets and pretrained weights."""
    input:
        sorted({f"data/{STUDY.dataset(experiment)}.json" for experiment in STUDY.experiments}),
        sorted(str(pretrained.files(name)[0]) for name in STUDY.checkpoints),
    localrule: True


rule exports:
    """What the runs cost and give as files for elsewhere: the study's exports, measured."""
    input:
        [str(paths.exports_file(STUDY.study, entry)) for entry in STUDY.exports],
    localrule: True


rule runs:
    """Every training the command is narrowed to."""
    input:
        lambda wildcards: [str(run.record) for run in REQUESTED],  # only where it is asked for
    localrule: True
