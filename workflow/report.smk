"""
REQUIRED INPUTS: records, histories, evaluations and post-training results of all current runs of the study (whatever this command is
                 narrowed to), params/published.csv, docs/choices.md, benchmarks/results/cost.csv if it is there
OUTPUTS: results/<study>/{measurements.csv,oscillations.csv,metrics.json,agreement.csv,coverage.csv,claims.csv,claims_evidence.csv,
         posttraining.csv,reconstruction.csv,findings.csv,findings.md,README.md,index.html,making.html,summary.json,tables/},
         results/<study>/runs/<experiment>/<variant>.html, figures/<study>/

Nothing here but the toy experiment imports torch; every rule runs from what git holds.
"""

RESULTS, FIGURES = f"results/{STUDY.study}", f"figures/{STUDY.study}"
COMPARISONS = [f"comparison-{name}" for name in STUDY.comparisons]
TABLES = [
    *STUDY.tables,
    *(["rate-search"] if STUDY.rate_searches else []),
    *COMPARISONS,
    *(f"method-rates-{name}" for name in STUDY.method_rates),
    *(["gain"] if STUDY.gain else []),
    *(["cross-bit-rules"] if STUDY.slices else []),
    *(["exports", "exports-widths"] if STUDY.exports else []),
]
FIGURE_NAMES = drawing.drawn(STUDY, VARIANTS, {run.path for run in SHOWN}, SHOWN_ENTRIES)
POSTTRAINING = [f"{RESULTS}/{name}.csv" for name in ("posttraining", "reconstruction") if STUDY.posttraining]
TEMPLATES = sorted(map(str, paths.shipped("src/oscillations/report/pages/templates").iterdir()))
COST = [str(paths.COST)] if paths.COST.exists() else []
REFERENCE = [f"results/{STUDY.reference}/{name}.csv" for name in ("measurements", "oscillations")]
COMPANIONS = [f"results/{study}/{name}.csv" for study in STUDY.companions for name in ("measurements", "posttraining")]
# those studies are not this one's to make
REFERENCE, COMPANIONS = ([file for file in files if Path(file).exists()] for files in (REFERENCE, COMPANIONS))
# made on request
EXPORTS = [str(file) for file in (paths.exports_file(STUDY.study, entry) for entry in STUDY.exports) if file.exists()]
FILMED = {
    film: [str(run.folder / paths.WEIGHTS) for run in SHOWN if run.path in spec.panels]
    for film, spec in STUDY.films.items()
}
FILMS = [f"{FIGURES}/{film}.gif" for film, histograms in FILMED.items() if histograms]
PAGES = sorted(str(paths.variant_page(STUDY.study, path)) for path in {run.path for run in SHOWN})
REPORT_PARAMS = as_json(STUDY.model_dump(mode="json", by_alias=True, exclude={"training", "wanted"}))

if STUDY.toy_regression:

    rule toy:
        """AOQ's toy experiment; needs no data."""
        output:
            f"{RESULTS}/toy-regression.csv",
        log:
            f"logs/{STUDY.study}/toy.log",
        benchmark:
            f"logs/{STUDY.study}/toy.tsv"
        localrule: True
        params:
            arithmetic=arithmetic("aoq-toy"),
            choices=as_json(STUDY.toy_regression.model_dump(mode="json")),
            study=STUDY_FILE,
        shell:
            "python -m oscillations toy --study {params.study} > {log} 2>&1"


rule collect:
    """Every current run at every evaluation, one tidy table; and what post-training methods make of it."""
    input:
        SHOWN_EVALUATIONS,  # made anew whenever a record is
        SHOWN_POSTTRAINING,
    output:
        update(f"{RESULTS}/measurements.csv"),  # other studies read them at any time
        update(POSTTRAINING),
    log:
        f"logs/{STUDY.study}/report/collect.log",
    benchmark:
        f"logs/{STUDY.study}/report/collect.tsv"
    localrule: True
    params:
        code=sources.code("report.collect:collect"),
        study=STUDY_FILE,
    shell:
        "python -m oscillations collect --study {params.study} > {log} 2>&1"


rule oscillations:
    """Oscillation counts and weight statistics of every epoch, one tidy table."""
    input:
        SHOWN_EVALUATIONS,
    output:
        update(f"{RESULTS}/oscillations.csv"),
    log:
        f"logs/{STUDY.study}/report/oscillations.log",
    benchmark:
        f"logs/{STUDY.study}/report/oscillations.tsv"
    localrule: True
    params:
        code=sources.code("report.collect:collect_oscillations"),
        study=STUDY_FILE,
    shell:
        "python -m oscillations oscillations --study {params.study} > {log} 2>&1"


rule tables:
    """Published beside reproduced, agreement.csv and its counts, rate searches, comparisons of methods; metrics.json."""
    input:
        rules.collect.output,
        rules.oscillations.output if COMPARISONS else [],
        COST if COMPARISONS else [],
        COMPANIONS if STUDY.gain else [],
        EXPORTS,
        str(paths.PUBLISHED),
    output:
        shown(f"{RESULTS}/tables", TABLES, "csv", "Tables", "table"),
        expand(f"{RESULTS}/tables/{{table}}.{{suffix}}", table=TABLES, suffix=["md", "tex", "json"]),
        shown(RESULTS, ["agreement"], "csv", "Findings", "agreement"),
        f"{RESULTS}/coverage.csv",
        f"{RESULTS}/metrics.json",
    log:
        f"logs/{STUDY.study}/report/tables.log",
    benchmark:
        f"logs/{STUDY.study}/report/tables.tsv"
    localrule: True
    params:
        code=sources.code("report.tables"),
        choices=REPORT_PARAMS,
        study=STUDY_FILE,
    shell:
        "python -m oscillations tables --study {params.study} > {log} 2>&1"


rule figures:
    """Every figure of which something has run, as PNG and PDF."""
    input:
        rules.collect.output,
        [f"{RESULTS}/tables/{table}.csv" for table in COMPARISONS + (["gain"] if STUDY.gain else [])],
        rules.oscillations.output,
        f"{RESULTS}/toy-regression.csv" if STUDY.toy_regression else [],
        SHOWN_EVALUATIONS,
    output:
        shown(FIGURES, FIGURE_NAMES, "png", "Figures", "figure"),
        expand(f"{FIGURES}/{{figure}}.pdf", figure=FIGURE_NAMES),
    log:
        f"logs/{STUDY.study}/report/figures.log",
    benchmark:
        f"logs/{STUDY.study}/report/figures.tsv"
    localrule: True
    params:
        code=sources.code("report.figures"),
        choices=REPORT_PARAMS,
        study=STUDY_FILE,
    shell:
        "python -m oscillations figures --study {params.study} > {log} 2>&1"


if FILMS:

    rule films:
        """How the weights of a layer move over their grid during a training, as GIF."""
        input:
            FILMED.values(),
        output:
            shown(FIGURES, FILMED, "gif", "Figures", "film"),
        log:
            f"logs/{STUDY.study}/report/films.log",
        benchmark:
            f"logs/{STUDY.study}/report/films.tsv"
        localrule: True
        params:
            code=sources.code("report.figures.film"),
            choices=as_json({name: spec.model_dump(mode="json") for name, spec in STUDY.films.items()}),
            study=STUDY_FILE,
        shell:
            "python -m oscillations films --study {params.study} > {log} 2>&1"


rule claims:
    """A verdict for every claim, with the comparisons behind it."""
    input:
        rules.collect.output,
        rules.oscillations.output,
        REFERENCE,
    output:
        shown(RESULTS, ["claims"], "csv", "Findings", "claims"),
        shown(RESULTS, ["claims_evidence"], "csv", "Findings", "evidence"),
    log:
        f"logs/{STUDY.study}/report/claims.log",
    benchmark:
        f"logs/{STUDY.study}/report/claims.tsv"
    localrule: True
    params:
        code=sources.code("report.claims"),
        choices=REPORT_PARAMS,
        study=STUDY_FILE,
    shell:
        "python -m oscillations claims --study {params.study} > {log} 2>&1"


rule findings:
    """What was found, in sentences."""
    input:
        rules.tables.output,
        rules.claims.output,
        COMPANIONS if STUDY.gain else [],
    output:
        shown(RESULTS, ["findings"], "csv", "Findings", "findings"),
        f"{RESULTS}/findings.md",
    log:
        f"logs/{STUDY.study}/report/findings.log",
    benchmark:
        f"logs/{STUDY.study}/report/findings.tsv"
    localrule: True
    params:
        code=sources.code("report.findings"),
        choices=REPORT_PARAMS,
        study=STUDY_FILE,
    shell:
        "python -m oscillations findings --study {params.study} > {log} 2>&1"


rule site:
    """The page that shows all of it, how it was made, the same for forges, and a page for every variant.

    And over all studies results/index.html and README.md, which no study can call its own.
    """
    input:
        rules.tables.output,
        rules.figures.output,
        FILMS,
        rules.claims.output,
        rules.findings.output,
        TEMPLATES,
        str(paths.CHOICES),
        COST,
    output:
        PAGES,
        study=[
            *expand(f"{RESULTS}/{{name}}", name=["index.html", "making.html", "README.md"]),
            update(f"{RESULTS}/summary.json"),  # the page over all studies is made of them
        ],
    log:
        f"logs/{STUDY.study}/report/site.log",
    benchmark:
        f"logs/{STUDY.study}/report/site.tsv"
    localrule: True
    params:
        code=sources.code("report.pages.study", "report.pages.landing"),
        choices=REPORT_PARAMS,
        study=STUDY_FILE,
    shell:
        "python -m oscillations site --study {params.study} > {log} 2>&1"


# All of the above from what is there, whatever is stale or missing; trains nothing.
rule report:
    log:
        f"logs/{STUDY.study}/report.log",
    localrule: True
    params:
        study=STUDY_FILE,
    shell:
        "python -m oscillations report --study {params.study} > {log} 2>&1"
