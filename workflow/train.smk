"""
REQUIRED INPUTS: data/<dataset>.json, and the checkpoints or pretrained weights that a fine-tune starts from
OUTPUTS: results/<study>/runs/<experiment>/<variant>/seed<k>/{run.json,history.csv,layers.csv}, and weights.csv where
         the experiment records histograms,
         checkpoints/<study>/<experiment>/<variant>/seed<k>.safetensors, and seed<k>.last.safetensors where the weights
         at the end of training are kept beside the best epoch's

One job per variant makes all its seeds in one process; runs that are there and current are kept.
"""

for experiment in dict.fromkeys(variant.experiment for variant in CHOSEN):
    variants = {variant.name: variant for variant in CHOSEN if variant.experiment == experiment}
    seeds = next(iter(variants.values())).seeds
    files = paths.run_files(STUDY.experiments[experiment].histograms is not None)
    # A profile's "group-components: [train=4]" makes four variants of an experiment in one job of a cluster;
    # Snakemake says only here that a group belongs to a class.
    workflow.parent_groupids[paths.rule_name(experiment)] = "train"
    weights = [paths.CHECKPOINTS[name] for name in next(iter(variants.values())).recipe.training.kept.values()]

    rule:
        """Train all seeds of one variant."""
        name:
            paths.rule_name(experiment)
        input:
            data=dataset_files(experiment),
            start=lambda wildcards, variants=variants: start_files(variants[wildcards.variant]),
        output:
            update(
                expand(
                    [
                        *(
                            f"results/{STUDY.study}/runs/{experiment}/{{{{variant}}}}/seed{{seed}}/{name}"
                            for name in files
                        ),
                        *(
                            f"checkpoints/{STUDY.study}/{experiment}/{{{{variant}}}}/seed{{seed}}{suffix}"
                            for suffix in weights
                        ),
                    ],
                    seed=seeds,
                )
            ),
        log:
            f"logs/{STUDY.study}/train/{experiment}/{{variant}}.log",
        benchmark:
            f"logs/{STUDY.study}/train/{experiment}/{{variant}}.tsv"
        wildcard_constraints:
            variant=variant_pattern(experiment, variants),
        group:
            paths.rule_name(experiment)
        threads: STUDY.threads
        resources:
            gpu=GPUS,
            mem_mb=lambda wildcards, attempt, first=memory(experiment): attempt * first,
            runtime=lambda wildcards, attempt, first=minutes(experiment, len(seeds)): longer(attempt, first, "train"),
            trainings=1,
            seeds=",".join(map(str, seeds)),  # not a param: those are compared, and narrowing must not retrain
        params:
            recipe=lambda wildcards, variants=variants: identity_of(variants[wildcards.variant], "recipe"),
            arithmetic=lambda wildcards, variants=variants: identity_of(variants[wildcards.variant], "arithmetic"),
            study=STUDY_FILE,
            experiment=experiment,
        shell:
            "python -m oscillations train --study {params.study} --only {params.experiment}/{wildcards.variant}"
            " --seeds {resources.seeds} >> {log} 2>&1"
