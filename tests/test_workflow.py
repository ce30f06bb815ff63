"""The real rules on a tiny study in a scratch directory: what is planned, what is kept, what travels."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import uuid
import zipfile

import faults
import pandas as pd
import programs
import psutil
import pytest
import torch
import yaml
from conftest import BUCKET, NEEDS_BUCKET, ROOT, Project, job_counts
from safetensors.torch import load_file
from screenshots import NEEDS_BROWSER, Watched, browser

pytestmark = pytest.mark.slow

REPORT = {"collect", "oscillations", "tables", "figures", "films", "claims", "findings", "site", "all"}
FOLLOWS = REPORT | {"evaluate"}
MEASURED = "results/tiny/measurements.csv"
OF_A_RUN = r"/tiny/(runs/)?[^/]+/[^/]+/seed\d"
SLURM = ("--workflow-profile", "workflow/profiles/slurm", "-n")


def resources(output):
    """Of a dry run's jobs: rule, and what it asks for."""
    jobs = re.findall(r"rule (\w+):\n(?:.+\n)*?\s+resources: (.*)", output)
    return [(rule, dict(one.split("=", 1) for one in asked.split(", ") if "=" in one)) for rule, asked in jobs]


def trains(planned):
    return {rule: count for rule, count in planned.items() if rule.startswith("train_")}


def test_a_dry_run_plans_every_variant_once(tmp_path):
    planned = Project(tmp_path / "project", drawn=True).planned()
    assert trains(planned) == {"train_mlp5_scratch": 4, "train_mlp5_lambda": 2}
    assert planned["fetch"] == 1
    assert planned["evaluate"] == 2
    assert set(planned) == {"fetch", *trains(planned), *FOLLOWS}


def test_a_finished_study_has_everything_and_nothing_to_do(finished):
    assert finished.planned() == {}
    results = finished.folder / "results/tiny"
    measured = pd.read_csv(results / "measurements.csv")
    assert set(measured.method) == {"baseline", "ptq", "qat", "osciquant"}
    assert len(measured[measured.split == "test"]) == 6 * 2 * 5
    assert measured.accuracy.between(0, 100).all()
    for name in (
        "oscillations.csv",
        "metrics.json",
        "agreement.csv",
        "claims.csv",
        "index.html",
        "making.html",
        "README.md",
        "../index.html",
        "runs/mlp5-scratch/qat-3bit.html",
        "tables/table1.md",
        "tables/rate-search.md",
        "provenance.json",
    ):
        assert (results / name).stat().st_size > 0, name
    assert not list(finished.folder.glob("work/**/*"))


def test_every_link_of_the_site_leads_somewhere(finished):
    results = finished.folder / "results"
    pages = [results / "index.html", *results.glob("tiny/**/*.html")]
    assert len(pages) == 3 + 6
    for page in pages:
        links = set(re.findall(r'(?:href|src)="([^"]+)"', page.read_text()))
        assert len(links) >= 3
        assert not [link for link in links if "://" in link], "a page opens without a network"
        for link in links:
            file, _, anchor = link.partition("#")
            target = (page.parent / file).resolve() if file else page
            assert target.exists(), f"{page}: {link}"
            assert not anchor or f'id="{anchor}"' in target.read_text(), f"{page}: {link}"


def test_a_variants_page_holds_its_curves_recipe_and_files(finished):
    page = (finished.folder / "results/tiny/runs/mlp5-scratch/osciquant-3bit.html").read_text()
    charts = re.findall(r'<svg role="img" aria-label="([^"]+)".*?</svg>', page)
    assert charts == [
        "Loss over epochs", "Validation accuracy, % over epochs", "Weights that oscillate per step, % over epochs",
        "Weights near a threshold, % over epochs",
    ]  # fmt: skip
    assert page.count("<polyline") == 2 * (2 + 5 + 1 + 1)  # of two seeds
    assert page.count('data-seed="1"') == 2 + 5 + 1 + 1
    history = pd.read_csv(finished.folder / "results/tiny/runs/mlp5-scratch/osciquant-3bit/seed0/history.csv")
    assert all(len(points.split()) == len(history) for points in re.findall(r'points="([^"]+)"', page))
    for text in ("method.lambda", "training.lr", "only=mlp5-scratch/osciquant-3bit", "seed1/run.json"):
        assert text in page


def test_a_page_or_a_record_that_is_missing_is_made_again(finished):
    runs = finished.folder / "results/tiny/runs/mlp5-scratch"
    (runs / "qat-3bit.html").unlink()
    assert finished.planned() == {"all": 1, "site": 1}
    (runs / "qat-3bit/seed1/run.json").unlink()
    assert trains(finished.planned()) == {"train_mlp5_scratch": 1}


def test_the_readme_of_a_study_shows_what_its_page_shows(finished):
    text = (finished.folder / "results/tiny/README.md").read_text()
    bullets = (finished.folder / "results/tiny/findings.md").read_text().split("\n\n")[-1]
    assert bullets.strip() in text
    assert "| OsciQuant | 3-bit |" in text
    assert "(../../figures/tiny/figure3.png)" in text
    assert "figureA1" not in text  # exact figures are the same in every study
    assert "| C1 | inconclusive |" in text
    landing = (finished.folder / "results/README.md").read_text()
    assert "## [A tiny study](tiny/README.md)" in landing
    assert bullets.splitlines()[0].replace("](", "](tiny/") in landing


def test_a_record_explains_itself(finished):
    record = json.loads((finished.folder / "results/tiny/runs/mlp5-scratch/qat-3bit/seed1/run.json").read_text())
    assert record["recipe"]["method"]["bits"] == 3
    assert record["data"]["name"] == "digits"
    assert record["split"] == {
        "train": 1100,
        "validation": 300,
        "test": 397,
        "validation_sha256": record["split"]["validation_sha256"],
    }
    assert set(record["validation_accuracy"]) == {"32", "2", "3", "4", "8"}
    assert record["oscillations_at_best"]["iteration_crossings"] > 0
    assert record["environment"]["threads"] == 1
    assert {"arithmetic", "status", "best_epoch", "epochs_run", "checkpoint_sha256", "timing"} <= set(record)


def test_every_rule_has_a_name_that_python_takes(project):
    listed = project.run("snakemake", "--list-rules", "--config", "study=tiny").splitlines()
    names = [line.split()[0] for line in listed if line and not line[0].isspace() and "profile" not in line]
    assert {"train_mlp5_scratch", "site"} <= set(names)
    assert all(name.isidentifier() for name in names)


@pytest.fixture(scope="module")
def unpacked_report(finished_project, tmp_path_factory):
    """The finished project with Snakemake's report of it, unpacked, and what making it said."""
    folder = tmp_path_factory.mktemp("report") / "project"
    shutil.copytree(finished_project.folder, folder)
    said = Project.at(folder).snakemake("--report", "report.zip")
    with zipfile.ZipFile(folder / "report.zip") as archive:
        archive.extractall(folder)
    return folder, said


def test_snakemakes_report_shows_findings_tables_and_figures(unpacked_report):
    """And asks for nothing from elsewhere."""
    folder, said = unpacked_report
    assert "ERROR" not in said  # of the captions' markup
    page = (folder / "report/report.html").read_text()
    shown = {file.name for file in folder.glob("report/data/**/*.*")}
    assert {"table1.csv", "comparison-mlp5.csv", "figure3.png", "figure-film-mlp5.gif", "claims.csv"} <= shown
    described = json.loads(re.search(r"var workflow_desc = (\".*\");?$", page, re.MULTILINE)[1])
    findings = (folder / "results/tiny/findings.csv").read_text()
    assert findings.count("\n") - 1 == described.count("<li>")
    assert described.count("<table") >= 3 and "OsciQuant" in described
    assert not re.findall(r"(?:src|href)=\"https?://[^\"]+\.(?:js|css)", page)


@NEEDS_BROWSER
def test_snakemakes_report_opens_in_a_browser_without_a_network(unpacked_report):
    """Each category lists all that the study has of it, and a figure stands beside its caption."""
    folder, _ = unpacked_report
    drawn = (file.stem for file in (folder / "figures/tiny").iterdir() if file.suffix in (".png", ".gif"))
    categories = {
        "Tables": sorted(file.stem for file in (folder / "results/tiny/tables").glob("*.csv")),
        "Figures": sorted(drawn),
        "Findings": ["agreement", "claims", "claims_evidence", "findings"],
    }
    assert all(categories.values())
    with browser() as started:
        watched = Watched(started.new_context(offline=True).new_page())
        tab = watched.open(folder / "report/report.html")
        menu = tab.locator("#app nav").first
        for category, names in categories.items():
            menu.get_by_role("link", name=category, exact=True).click()
            menu.get_by_text("name", exact=True).wait_for()
            assert sorted(menu.locator("td:first-child").all_inner_texts()) == names
            menu.get_by_role("link", name="Results").click()
        menu.get_by_role("link", name="Figures", exact=True).click()
        menu.locator("tr", has_text=re.compile("^figure3$")).locator("[iconname=information-circle]").click()
        menu.get_by_text("A figure of study params/tiny.yaml, drawn from the records of its runs.").wait_for()
        menu.locator("[iconname=eye]").click()
        picture = tab.locator("img[src$='figure3.png']")
        picture.wait_for()
        assert picture.evaluate("async picture => { await picture.decode(); return picture.naturalWidth; }") > 500
        # a word of the library in the page, to those who make pages with it
        assert [
            fault for fault in watched.faults if "tailwindcss.com should not be used in production" not in fault
        ] == []


def test_jobs_run_side_by_side(project):
    """Two jobs that each wait for the other both end, however fast they are and on however many cores."""
    project.snakemake("data")
    meet = f"python {ROOT / 'tests/meet.py'} {project.folder / 'met'} train"
    project.edit("workflow/train.smk", "python -m oscillations train", meet)
    variants = [f"mlp5-scratch/{name}" for name in ("baseline", "qat-3bit")]
    records = [f"results/tiny/runs/{variant}/seed0/run.json" for variant in variants]
    project.snakemake(*records, config=f"only={','.join(variants)} seeds=0")
    assert len(list((project.folder / "met").iterdir())) == 2


def test_a_methods_hyperparameter_reruns_only_its_runs(finished):
    finished.edit("params/tiny.yaml", "osciquant: {bits: [2, 3], lambda: 1}", "osciquant: {bits: [2, 3], lambda: 1.5}")
    planned = finished.planned()
    assert trains(planned) == {"train_mlp5_scratch": 2}
    assert planned["evaluate"] == 1
    runs = finished.folder / "results/tiny/runs/mlp5-scratch"
    before = {path: path.stat().st_mtime_ns for path in runs.glob("*/*/run.json")}
    finished.snakemake("runs")
    changed = {path.parts[-3] for path, stamp in before.items() if path.stat().st_mtime_ns != stamp}
    assert changed == {"osciquant-ternary", "osciquant-3bit"}
    assert set(finished.planned()) <= FOLLOWS


def test_parq_is_qat_with_rho_0_and_full_precision_with_rho_1(project):
    """The same weights, bit for bit, and the same accuracies at every width."""
    ends = "\n".join(
        f"  parq-{share}:\n    model: {{name: mlp5, width: 16}}\n    setting: scratch\n    methods:\n"
        f"      parq: {{bits: 3, anneal_start: {share}, anneal_end: {share}}}"
        for share in (0, 1)
    )
    project.edit("params/tiny.yaml", "  mlp5-lambda:", f"{ends}\n  mlp5-lambda:")
    project.edit("params/tiny.yaml", "qat: {bits: 3}", "qat: {bits: 3, scale_grad: detach}")
    project.edit("params/tiny.yaml", "patience: 5}", "patience: 5, keep: last}")
    twins = {"parq-0/parq-3bit": "mlp5-scratch/qat-3bit", "parq-1/parq-3bit": "mlp5-scratch/baseline"}
    project.snakemake(MEASURED, config=f"only={','.join([*twins, *twins.values()])}")
    measured = pd.read_csv(project.folder / MEASURED).query("split == 'test'")
    measured["path"] = measured.experiment + "/" + measured.variant
    for parq, twin in twins.items():
        for seed in (0, 1):
            files = [project.folder / f"checkpoints/tiny/{path}/seed{seed}.safetensors" for path in (parq, twin)]
            mine, other = map(load_file, files)
            assert mine.keys() == other.keys()
            assert all(torch.equal(value, other[key]) for key, value in mine.items())
        found = [measured[measured.path == path].set_index(["seed", "eval_bits"]).accuracy for path in (parq, twin)]
        assert len(found[0]) == 10 and found[0].sort_index().equals(found[1].sort_index())


def test_a_recipe_with_more_files_reruns_its_runs(finished):
    """Snakemake has no record of a file that did not exist, and would trust none of the others'."""
    finished.edit("params/tiny.yaml", "patience: 5}", "patience: 5, keep: both}")
    assert trains(finished.planned()) == {"train_mlp5_scratch": 4, "train_mlp5_lambda": 2}


def test_a_change_narrowed_to_one_variant_is_made(finished):
    """Its experiment's other runs stay where they are, and are evaluated beside it."""
    finished.edit("params/tiny.yaml", "lambda: 1", "lambda: 0.5")
    planned = finished.planned(config="only=mlp5-scratch/osciquant-3bit")
    assert planned["train_mlp5_scratch"] == planned["evaluate"] == 1
    assert planned["site"] == 1


def test_a_new_method_plans_only_its_jobs(finished):
    (finished.folder / "src/oscillations/methods/halved.py").write_text(
        '"""A toy."""\n\nfrom oscillations.engine.method import Method, QuantizedOptions\n\n\n'
        "class Halved(Method):\n    Options = QuantizedOptions\n\n"
        "    def after_backward(self, quantizer, grads, moment):\n        for grad in grads:\n            grad.mul_(0.5)\n"
    )
    assert finished.planned() == {}
    finished.edit("params/tiny.yaml", "      qat: {bits: 3}", "      qat: {bits: 3}\n      halved: {bits: 3}")
    planned = finished.planned()
    assert trains(planned) == {"train_mlp5_scratch": 1}
    assert planned["evaluate"] == 1
    finished.snakemake(MEASURED)
    assert "halved" in set(pd.read_csv(finished.folder / MEASURED).method)


def test_more_seeds_keep_those_that_are_there(finished):
    record = finished.folder / "results/tiny/runs/mlp5-scratch/baseline/seed0/run.json"
    before = record.read_bytes()
    finished.edit("params/tiny.yaml", "seeds: [0, 1]", "seeds: [0, 1, 2]")
    assert sum(trains(finished.planned()).values()) == 6
    finished.snakemake("runs")
    assert record.read_bytes() == before
    log = (finished.folder / "logs/tiny/train/mlp5-scratch/baseline.log").read_text()
    assert "mlp5-scratch/baseline/seed0: kept" in log


def test_two_narrowed_commands_stand_together(project):
    project.snakemake(MEASURED, config="only=mlp5-lambda seeds=0")
    project.snakemake(MEASURED, config="only=mlp5-scratch/qat-3bit seeds=0,1")
    measured = pd.read_csv(project.folder / MEASURED)
    assert set(measured.variant) == {"osciquant-3bit-lambda0", "osciquant-3bit-lambda2", "qat-3bit"}
    for config in (
        "only=mlp5-lambda seeds=0",
        "only=mlp5-scratch/qat-3bit seeds=0,1",
        "only=mlp5-scratch/qat-3bit seeds=1",
    ):
        assert project.planned(MEASURED, config=config) == {}, config


def test_a_run_that_another_study_has_made_is_copied(finished):
    text = (finished.folder / "params/tiny.yaml").read_text()
    (finished.folder / "params/twin.yaml").write_text(text.replace("study: tiny", "study: twin"))
    output = finished.cli("train", "--study", "twin", "--only", "mlp5-scratch/qat-3bit")
    assert output.count("the same run as in study tiny") == 2
    name = "mlp5-scratch/qat-3bit/seed1"
    for file in (f"results/{{}}/runs/{name}/run.json", f"checkpoints/{{}}/{name}.safetensors"):
        made, copied = (finished.folder / file.format(study) for study in ("tiny", "twin"))
        assert made.read_bytes() == copied.read_bytes()
    finished.edit("params/twin.yaml", "lr: 2.0e-3", "lr: 1.0e-3")
    assert "the same run" not in finished.cli("train", "--study", "twin", "--only", "mlp5-scratch/qat-3bit")


def test_a_clone_without_data_or_weights(finished):
    """Nothing to do, and `report` makes every table, figure, claim and the site again."""
    drawn = {file.name for file in (finished.folder / "figures/tiny").iterdir()}
    for name in ("data", "checkpoints", ".snakemake", "logs", "figures"):
        shutil.rmtree(finished.folder / name)
    site = finished.folder / "results/tiny/index.html"
    before = site.read_text()
    site.unlink()
    finished.snakemake("report")
    assert site.read_text() == before
    assert {file.name for file in (finished.folder / "figures/tiny").iterdir()} == drawn
    assert finished.planned() == {}


def test_a_stale_record_is_refused_with_the_command_that_mends_it(finished):
    finished.edit("params/tiny.yaml", "osciquant: {bits: [2, 3], lambda: 1}", "osciquant: {bits: [2, 3], lambda: 1.5}")
    output = finished.cli("collect", "--study", "params/tiny.yaml")
    assert "runs/mlp5-scratch/osciquant-3bit, seeds [0, 1]: made with another recipe (method.lambda)" in output
    assert "snakemake all --config study=tiny only=mlp5-scratch/osciquant-3bit" in output
    measured = pd.read_csv(finished.folder / MEASURED)
    assert "osciquant" not in set(measured[measured.experiment == "mlp5-scratch"].method)


def test_a_command_about_something_else_neither_makes_stale_post_training_nor_promises_its_figure(finished):
    finished.draw_nothing()
    entry = "{of: [mlp5-scratch/baseline], bits: [3], methods: {adaround: {iterations: 5, images: 64}}}"
    finished.edit("params/tiny.yaml", "rate_searches:", f"posttraining:\n  after: {entry}\nrate_searches:")
    figure = finished.folder / "figures/tiny/figure-reconstruction-after.png"
    finished.snakemake("figures/tiny/figure-reconstruction-after.png")
    assert figure.exists()
    finished.edit("params/tiny.yaml", "iterations: 5", "iterations: 6")
    assert "posttrain" not in finished.planned(config="only=mlp5-lambda")
    finished.snakemake("all", config="only=mlp5-lambda")
    assert not figure.exists()
    assert finished.planned(config="only=mlp5-lambda") == {}


@pytest.mark.parametrize("days", [-1, 1], ids=["a day ago", "a day ahead"])
def test_a_clock_that_jumps_changes_nothing(finished, days):
    """All was made under another clock, and every file under an earlier one than what it is made of."""
    names, found = (*faults.MADE, ".snakemake"), "results/tiny/findings.md"
    times = {
        file: file.stat().st_mtime for name in names for file in (finished.folder / name).rglob("*") if file.is_file()
    }
    first, whole = min(times.values()), faults.contents(finished.folder)
    for file, made in times.items():
        os.utime(file, (first + 86_400 * days - 60 * (made - first),) * 2)
    assert finished.planned() == {}
    (finished.folder / found).unlink()
    if days > 0:  # of which Snakemake makes nothing
        assert "clock skew" in finished.snakemake(found, ok=False)
        finished.run("find", *faults.MADE, "-newermt", "now", "-exec", "touch", "{}", "+")
    finished.snakemake(found)
    assert faults.contents(finished.folder) == whole
    assert finished.planned() == {}


def test_a_diverged_run_is_shown_and_not_averaged(project):
    project.edit("src/oscillations/engine/recipe.py", "Field(gt=0, le=1000)", "Field(gt=0)")  # no study may say so
    project.edit("params/tiny.yaml", "lr: 2.0e-3", "lr: 1.0e+30")
    project.snakemake("all", config="only=mlp5-scratch/baseline")
    measured = pd.read_csv(project.folder / MEASURED)
    assert set(measured.status) == {"diverged"}
    assert measured.accuracy.isna().all()
    assert "diverged" in (project.folder / "results/tiny/tables/table1.md").read_text()
    assert ">diverged<" in (project.folder / "results/tiny/index.html").read_text()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("qat: {bits: 3}", "qta: {bits: 3}", "params/tiny.yaml: experiments.mlp5-scratch.methods.qta: unknown method 'qta'; did you mean 'qat'?"),
        ("seeds: [0, 1]", "seeds: []", "params/tiny.yaml: seeds: List should have at least 1 item"),
        ("lambda: 1}", "lambda: big}", "params/tiny.yaml: experiments.mlp5-scratch.methods.osciquant: lambda:"),
    ],
)  # fmt: skip
def test_a_bad_study_stops_before_any_job(project, old, new, message):
    project.edit("params/tiny.yaml", old, new)
    output = project.snakemake("all", ok=False)
    assert message in output
    assert not (project.folder / "data").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("at_once=0", "at_once=0: not a positive number"),
        ("save_every=soon", "save_every=soon: not a positive number"),
        ("longest=0", "longest=0: not a positive number"),
        ("source=nowhere", "source=nowhere: no such file or folder"),
        (
            "only=mlp5-scrtch",
            "only=mlp5-scrtch: no such experiment, variant or entry 'mlp5-scrtch'; did you mean 'mlp5-scratch'?",
        ),
        ("sede=1", "--config sede=...: unknown key"),
        ("device=gpu", "device=gpu: did you mean 'cpu'?"),
        ("study=tyni", "params/tyni.yaml: no such study; did you mean 'tiny'?"),
    ],
)
def test_bad_command_lines_stop_before_any_job(project, config, message):
    assert message in project.snakemake("all", config=config, ok=False)


def test_a_second_workflow_is_refused_while_the_first_lives_and_no_longer(project):
    endless = ("epochs: 3, patience: 5", "epochs: 99999, patience: 99999")  # until it is killed
    project.edit("params/tiny.yaml", *endless)
    first = project.start("snakemake", "--cores", "2", "all", "--config", "study=tiny")
    try:
        deadline = time.monotonic() + 120
        while not list(project.folder.glob("work/**/progress.json")) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert list(project.folder.glob("work/**/progress.json")), "the first has not begun to train"
        output = project.snakemake("all", ok=False)
        assert f"another snakemake makes tiny here: process {first.pid} on {socket.gethostname()}, since" in output
        assert project.planned()  # to look is allowed
        status = project.cli("status", "--study", "params/tiny.yaml")
        assert "running" in status
    finally:
        for child in psutil.Process(first.pid).children(recursive=True):
            child.kill()
        first.kill()
        first.communicate()
    project.edit("params/tiny.yaml", *reversed(endless))
    assert list(project.folder.glob(".snakemake/locks/*.lock"))
    output = project.snakemake("runs", config="only=mlp5-scratch/baseline")
    assert "the lock it has left is lifted" in output
    assert not list(project.folder.glob(".snakemake/workflows/*.json"))


def test_a_killed_training_loses_nothing_under_snakemake(project, finished_project):
    """kill -9 of the training process after its first seed: the failed job's outputs are gone, the seed is not."""
    project.snakemake("data")
    run = "mlp5-scratch/osciquant-3bit"
    script = ROOT / "tests/kill_at.py"
    killed = f"python {script} step 75 train"
    project.edit("workflow/train.smk", "python -m oscillations train", killed)
    project.snakemake("runs", config=f"only={run}", ok=False)
    assert (project.folder / f"work/tiny/{run}/seed0/run.json").exists()
    project.edit("workflow/train.smk", killed, "python -m oscillations train")
    project.snakemake("runs", config=f"only={run}")
    log = (project.folder / f"logs/tiny/train/{run}.log").read_text()
    assert f"{run}/seed0: finished before, not in place yet" in log
    for seed in (0, 1):
        weights = f"checkpoints/tiny/{run}/seed{seed}.safetensors"
        assert (project.folder / weights).read_bytes() == (finished_project.folder / weights).read_bytes()


def test_the_slurm_profile_plans_the_same_jobs(project, slurm):
    output = project.run("snakemake", *SLURM, "all", "--config", "study=tiny", "device=cuda")
    assert trains(job_counts(output)) == {"train_mlp5_scratch": 4, "train_mlp5_lambda": 2}
    on_gpu = {rule for rule, asked in resources(output) if asked.get("gpu") == "1"}
    assert on_gpu == {"train_mlp5_scratch", "train_mlp5_lambda", "evaluate"}


def test_the_slurm_profile_is_found_from_another_folder(project, slurm, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "params").mkdir(parents=True)
    shutil.copy(project.folder / "params/tiny.yaml", elsewhere / "params")
    clone = {"-s": "Snakefile", "--workflow-profile": "workflow/profiles/slurm"}
    options = [word for option, place in clone.items() for word in (option, str(project.folder / place))]
    command = ("snakemake", *options, "-n", "runs", "--config", "study=tiny")
    code, output = programs.run(command, elsewhere, project.environment())
    assert code == 0, output
    assert trains(job_counts(output)) == {"train_mlp5_scratch": 4, "train_mlp5_lambda": 2}


def test_variants_of_an_experiment_share_a_job_where_a_profile_says_so(project, slurm):
    output = project.run("snakemake", *SLURM, "runs", "--group-components", "train=3", "--config", "study=tiny")
    groups = re.findall(r"Group job (\S+) \(", output)
    assert sorted(groups) == ["train_mlp5_lambda", "train_mlp5_scratch", "train_mlp5_scratch"]  # 2; 3 and 1


@pytest.mark.parametrize(("together", "minutes"), [((), {"300"}), (("--group-components", "train=3"), {"100"})])
def test_no_job_asks_for_more_time_than_there_is(project, slurm, together, minutes):
    """Times of variants that share a job are added up; on a GPU, where nothing was measured, half a day is asked."""
    config = ("--config", "study=tiny", "device=cuda", "longest=300")
    output = project.run("snakemake", *SLURM, "runs", *together, *config)
    assert {asked["runtime"] for rule, asked in resources(output) if rule.startswith("train_")} == minutes


def interrupt_group(snakemake):
    """Ctrl-C in a terminal."""
    os.killpg(snakemake.pid, signal.SIGINT)


def interrupt_scheduler(snakemake):
    snakemake.send_signal(signal.SIGINT)


def terminate_scheduler(snakemake):
    snakemake.terminate()


def kill_a_job(snakemake):
    """As for its memory."""
    for _ in range(1000):  # between two jobs there may be none
        for child in snakemake.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "train" in child.cmdline():
                    child.kill()
                    return
        time.sleep(0.01)


def test_a_workflow_ended_again_and_again_makes_what_an_undisturbed_one_does(project, finished_project):
    """In every way in which one is ended; benchmarks/faults.py does it at random moments, in numbers."""
    project.edit(
        "params/tiny.yaml", "lambda: [0, 2]", "lambda: [0, 0.5, 1, 1.5, 2, 3, 4, 5]"
    )  # so that there is always more
    command = ["snakemake", "--cores", "2", "runs", "--config", "study=tiny"]
    heard = {
        "start_new_session": True,
        "stdout": subprocess.DEVNULL,
        "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    }
    for end in (interrupt_group, interrupt_scheduler, terminate_scheduler, faults.kill, kill_a_job):
        known, moment = faults.finished(project.folder, "tiny"), time.time()
        process = project.start(*command, **heard)
        snakemake = psutil.Process(process.pid)
        deadline = time.monotonic() + 120
        while not (trained := faults.trained_since(project.folder, moment, "tiny")) and time.monotonic() < deadline:
            assert process.poll() is None, end
            time.sleep(0.05)
        assert trained, end
        end(snakemake)
        assert process.wait(300) != 0 or end is faults.kill, end  # which has waited for it itself
        assert not known & faults.trained_since(project.folder, moment, "tiny"), end
    project.snakemake(MEASURED)
    made, undisturbed = (
        {name: content for name, content in faults.contents(folder).items() if re.search(OF_A_RUN, name)}
        for folder in (project.folder, finished_project.folder)
    )
    assert len(undisturbed) == 6 * 2 * 5
    assert faults.differing({name: made.get(name) for name in undisturbed}, undisturbed) == []
    assert faults.left_over(project.folder) == []


@pytest.fixture(params=["folder", pytest.param("bucket", marks=NEEDS_BUCKET)])
def dvc_project(finished, request):
    """The finished project as a git and DVC repository with a remote."""
    remote = str(finished.folder.parent / "store")
    if request.param == "bucket":
        remote = f"{BUCKET}/{uuid.uuid4()}"
    for name in (".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, finished.folder)
    with (finished.folder / ".gitignore").open("a") as file:
        file.write("/results/tiny/\n/figures/tiny/\n")
    (finished.folder / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvc/config", finished.folder / ".dvc")
    shutil.copy(ROOT / ".dvc/.gitignore", finished.folder / ".dvc")
    stage = (ROOT / "dvc.yaml").read_text().split("  paper-jpeg:")[0].replace("quick", "tiny")
    (finished.folder / "dvc.yaml").write_text(stage)
    finished.run("git", "init", "-q")
    finished.run("git", "config", "user.email", "t@example.org")
    finished.run("git", "config", "user.name", "t")
    finished.run("dvc", "remote", "add", "-d", "store", remote)
    if request.param == "bucket":
        finished.run("dvc", "remote", "modify", "store", "endpointurl", os.environ["AWS_ENDPOINT_URL"])
    finished.run("git", "add", "-A")
    finished.run("git", "commit", "-qm", "study")
    return finished


@NEEDS_BUCKET
def test_large_objects_and_credentials_outside_git_as_the_documentation_says(tmp_path, monkeypatch):
    """60 MB are fetched in parts; nothing of the environment is left that could stand for what DVC is told."""
    said = {name: os.environ[name] for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    for name in [name for name in os.environ if name.startswith("AWS_") and name != "AWS_DEFAULT_REGION"]:
        monkeypatch.delenv(name)
    text = (ROOT / "docs/workflow.md").read_text()
    lines = [line.split(" #")[0].strip() for line in re.findall("^    (?:dvc remote .*|printf .*)", text, re.MULTILINE)]
    for name, value in zip(
        ("s3://BUCKET/oscillations", "https://objects.example.org", "access_key_id KEY", "SECRET"),
        (f"{BUCKET}/{uuid.uuid4()}", said["AWS_ENDPOINT_URL"], f"access_key_id {said['AWS_ACCESS_KEY_ID']}",
         said["AWS_SECRET_ACCESS_KEY"]),
        strict=True,
    ):  # fmt: skip
        assert sum(name in line for line in lines) == 1, name
        lines = [line.replace(name, value) for line in lines]
    content = os.urandom(60_000_000)
    (tmp_path / "large").write_bytes(content)
    script = "; ".join(["set -e", "git init -q", "dvc init -q", *lines, "dvc add -q large", "dvc push"])
    script += "; rm -r large .dvc/cache; dvc pull; git add -A; git grep --cached access_key_id && exit 1 || exit 0"
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "large").read_bytes() == content


def cloned(project, folder):
    project.run("git", "clone", "-q", ".", str(folder))
    clone = Project.at(folder)
    clone.run("git", "config", "user.email", "t@example.org")
    clone.run("git", "config", "user.name", "t")
    return clone


def test_dvc_and_snakemake_agree_also_after_clone_and_pull(dvc_project, tmp_path):
    clone = cloned(dvc_project, tmp_path / "clone")  # of what was never recorded
    assert "tiny" in clone.run("dvc", "status")
    assert "results/tiny" in clone.run("dvc", "pull", ok=False)
    clone.run("dvc", "pull", "--allow-missing")

    assert "Nothing to be done" in dvc_project.run("dvc", "repro")  # Snakemake's word, recorded by DVC
    assert "up to date" in dvc_project.run("dvc", "repro")
    assert dvc_project.planned() == {}
    dvc_project.run("git", "add", "-A")
    dvc_project.run("git", "commit", "-qm", "results")
    tracked = dvc_project.run("git", "ls-files")
    assert "dvc.lock" in tracked
    assert "run.json" not in tracked and ".safetensors" not in tracked
    dvc_project.run("dvc", "push")
    assert "in sync" in dvc_project.run("dvc", "status", "-c")
    clone.run("git", "pull", "-q")
    clone.run("dvc", "pull")
    assert clone.planned() == {}
    assert "up to date" in clone.run("dvc", "repro")
    assert "mlp5-scratch.osciquant-3bit" in clone.run("dvc", "metrics", "show")
    assert "mlp5-scratch.osciquant-3bit" in clone.run("dvc", "metrics", "show", "results/tiny/metrics.json")
    assert "up to date" in clone.run("dvc", "status")

    clone.edit("params/tiny.yaml", "osciquant: {bits: [2, 3], lambda: 1}", "osciquant: {bits: [2, 3], lambda: 1.5}")
    assert "tiny" in clone.run("dvc", "status")
    output = clone.run("dvc", "exp", "run", "--name", "lambda2")  # does what `dvc repro` does
    assert trains(job_counts(output)) == {"train_mlp5_scratch": 2}
    assert "up to date" in clone.run("dvc", "repro")
    said = [clone.run("dvc", "metrics", "diff"), clone.run("dvc", "exp", "show", "--only-changed")]
    assert "lambda2" in said[1]
    clone.run("dvc", "plots", "show")
    drawn = (clone.folder / "dvc_plots/index.html").read_text()
    assert '"eval_bits"' in drawn and '"accuracy"' in drawn
    clone.run("dvc", "plots", "diff")
    figures = {file.name for file in clone.folder.glob("dvc_plots/static/*")}
    assert figures == {f"{side}_figures_tiny_figure1.png" for side in ("HEAD", "workspace")}
    clone.run("git", "commit", "-qam", "lambda 1.5")
    said.append(clone.run("dvc", "metrics", "diff", "--targets", "results/tiny/metrics.json", "--", "HEAD~1"))
    assert all("mlp5-scratch.osciquant-3bit" in each and "mlp5-scratch.qat-3bit" not in each for each in said)


def test_weights_of_one_study_travel_where_a_stage_of_results_has_their_line(dvc_project, tmp_path):
    """Its results are in git."""
    (dvc_project.folder / "dvc.yaml").unlink()
    shutil.copy(ROOT / ".gitignore", dvc_project.folder)
    stage = yaml.safe_load((ROOT / "results/dvc.yaml").read_text())["stages"]["rates-jpeg"]
    stage["outs"].append({"checkpoints/rates-jpeg": {"persist": True}})
    text = yaml.safe_dump({"stages": {"rates-jpeg": stage}}).replace("rates-jpeg", "tiny")
    (dvc_project.folder / "results/dvc.yaml").write_text(text)
    assert "Nothing to be done" in dvc_project.run("dvc", "repro", "results/dvc.yaml:tiny")
    dvc_project.run("git", "add", "-A")
    dvc_project.run("git", "commit", "-qm", "results")
    dvc_project.run("dvc", "push", "results/dvc.yaml:tiny")
    clone = cloned(dvc_project, tmp_path / "clone")
    clone.run("dvc", "pull", "results/dvc.yaml:tiny")
    assert "up to date" in clone.run("dvc", "status")
    weights = {file.relative_to(dvc_project.folder) for file in dvc_project.folder.glob("checkpoints/**/*.safetensors")}
    assert len(weights) == 12
    assert all((clone.folder / file).read_bytes() == (dvc_project.folder / file).read_bytes() for file in weights)
