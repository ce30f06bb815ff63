"""
What all rules share: the checked study, the variants this command is narrowed to, and their files.
"""

import gc
import json
import re
import sys
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

from snakemake.exceptions import WorkflowError

sys.path.insert(0, str(workflow.current_basedir.join("../src")))  # wherever one works; of a URL, what is installed
from oscillations.core.errors import InputError
from oscillations.jobs import launch, workflows
from oscillations.records import cost, identity, numerics, sources
from oscillations.records import provenance
from oscillations.records.plans import plans
from oscillations.study import drawing, paths, pretrained
from oscillations.study.reading import load
from oscillations.study.variants import select

gc.disable()  # what planning makes stays: to look for garbage in it takes a sixth of its time


@contextmanager
def refusing():
    """What a user can mend is one message."""
    try:
        yield
    except InputError as error:
        raise WorkflowError(str(error))


STUDY_FILE = f"params/{config.get('study', 'quick')}.yaml"  # a param of every rule: the same wherever the clone lies
with refusing():
    GPUS = launch.prepare(config)
    STUDY, VARIANTS = load(paths.shipped(STUDY_FILE))
    SELECTION = select(STUDY, VARIANTS, config.get("only"), config.get("seeds"))
    PLANS = plans(VARIANTS)

# Tables show every current run of the study, whatever this command is narrowed to.
FINISHED = [plan for plan in PLANS if plan.current]  # whether they are whole is for the jobs to see
CURRENT = [plan.run for plan in FINISHED]
STALE = {plan.stale for plan in PLANS}
PLANS_OF = {}
for plan in PLANS:
    PLANS_OF.setdefault(plan.variant.path, []).append(plan)
CHOSEN = SELECTION.variants
REQUESTED = [run for variant in CHOSEN for run in variant.runs()]
_SHOWN = set(REQUESTED + CURRENT)
SHOWN = [run for variant in VARIANTS for run in variant.runs() if run in _SHOWN]
SHOWN_EVALUATIONS = [
    str(file)
    for experiment in dict.fromkeys(run.experiment for run in SHOWN)
    for file in paths.evaluation_files(STUDY.study, experiment)
]


def posttraining_runs(entry):
    """Runs of a post-training entry that are shown."""
    return [run for run in SHOWN if run.path in STUDY.posttraining[entry].of]


def posttraining_experiments(entry):
    """Experiments that an entry's runs belong to."""
    return list(dict.fromkeys(paths.experiment_of(variant) for variant in STUDY.posttraining[entry].of))


def exported_experiments(entry):
    """Experiments that the runs of an entry of exports belong to."""
    return list(dict.fromkeys(paths.experiment_of(variant) for variant in STUDY.exports[entry].of))


def posttrained(entry):
    """Whether an entry that this command does not make has been made: whether a row of its files is current."""
    if not all(file.exists() for file in paths.posttraining_files(STUDY.study, entry)):
        return False
    from oscillations.records import rows  # costs pandas

    return any(len(made) for _, (made, _) in rows.posttrained(STUDY, entry, FINISHED))


with refusing():
    SHOWN_ENTRIES = [
        entry
        for entry in STUDY.posttraining
        if posttraining_runs(entry) and (entry in SELECTION.entries or posttrained(entry))
    ]
SHOWN_POSTTRAINING = [str(file) for entry in SHOWN_ENTRIES for file in paths.posttraining_files(STUDY.study, entry)]


# Snakemake's records travel with the results; only the main process may write them, and only of a study that no other makes.
AT_WORK = "another snakemake makes {} here: {}; wait until it has ended"
if workflow.is_main_process:
    with refusing():
        workflows.enter(workflows.PLANNING)  # before it looks, so that of two one sees the other
    at_work = workflows.at_work()
    if not at_work:
        workflows.lift_lock()
    if STUDY.study in at_work:
        print(AT_WORK.format(STUDY.study, at_work[STUDY.study]), file=sys.stderr)
    else:
        with refusing():
            provenance.save_unsaved(STUDY.study)
            provenance.restore(STUDY.study, [plan.files for plan in PLANS if plan.stale])


onstart:
    gc.enable()
    workflows.enter(STUDY.study)
    if holder := workflows.at_work().get(STUDY.study):
        raise WorkflowError(AT_WORK.format(STUDY.study, holder))


onsuccess:
    provenance.save(STUDY.study)
    page = Path("results", STUDY.study, "index.html")
    if page.exists():
        print(f"results: {page}", file=sys.stderr)


onerror:
    provenance.save(STUDY.study)


def dataset_files(experiment):
    """The dataset's age counts only if its content is not what runs were made from."""
    files = [f"data/{STUDY.dataset(experiment)}.{suffix}" for suffix in ("json", "safetensors")]
    return files if identity.OTHER_DATA in STALE else [ancient(file) for file in files]


def missing(wildcards):
    """Records behind evaluations that are there, which Snakemake does not miss, and pages, which it is slow to look for.

    One of a variant's, for one job makes all its seeds, and one page.
    """
    records = {run.path: str(run.record) for run in REQUESTED if not run.record.exists()}
    pages = [page for page in PAGES if not Path(page).exists()]
    return [*records.values(), *pages[:1]]


def experiment_runs(experiment):
    """Runs of one experiment that are shown."""
    return [run for run in SHOWN if run.experiment == experiment]


# What a job asks a cluster for grows with its attempts; what it has trained by then is saved.
COSTS = {one.experiment: one for one in cost.predict(PLANS, STUDY.judged)}


def megabytes(variants, of=cost.footprint):
    """Megabytes that a job over variants' runs asks for at first, by its footprint."""
    return max(cost.UNMEASURED_MB if GPUS else 0, cost.job_memory_mb((one.recipe for one in variants), of))


@cache
def memory(experiment):
    """Megabytes that a job over an experiment's runs asks for at first."""
    return megabytes(variant for variant in VARIANTS if variant.experiment == experiment)


def minutes(experiment, runs):
    """Minutes that a training job of some runs asks for at first."""
    return cost.job_minutes(COSTS[experiment], runs, STUDY.threads, bool(GPUS))


@cache
def evaluation_minutes(experiment):
    """Minutes that the evaluation of all runs of an experiment asks for at first."""
    mine = (variant for variant in VARIANTS if variant.experiment == experiment)
    return cost.evaluation_minutes(mine, len(STUDY.cross_bit), bool(GPUS))


def of_entry(entry):
    """Variants whose runs an entry of posttraining or exports names."""
    return [variant for variant in VARIANTS if variant.path in entry.of]


def posttraining_memory(name):
    """Megabytes that an entry's post-training asks for at first."""
    entry = STUDY.posttraining[name]
    return megabytes(of_entry(entry), partial(cost.posttraining_footprint, entry=entry))


def posttraining_minutes(name):
    """Minutes that an entry's post-training asks for at first."""
    entry = STUDY.posttraining[name]
    return cost.posttraining_minutes(entry, of_entry(entry), bool(GPUS))


def export_memory(name):
    """Megabytes that an entry's exports ask for at first, on the CPU."""
    recipes = (variant.recipe for variant in of_entry(STUDY.exports[name]))
    return cost.job_memory_mb(recipes, cost.export_footprint)


def export_minutes(name):
    """Minutes that an entry's exports ask for at first."""
    return cost.export_minutes(STUDY.exports[name], of_entry(STUDY.exports[name]))


def longer(attempt, first, group=None):
    """Minutes that an attempt asks for; those of a group's jobs that a profile puts into one are added up."""
    together = workflow.group_settings.group_components.get(group, 1)
    return min(attempt * first, int(config.get("longest", cost.LONGEST_MINUTES)) // together)


def variant_pattern(experiment, chosen):
    """Only the chosen variants' files are this command's to make; a list of thousands of names would be slow."""
    known = {variant.name for variant in VARIANTS if variant.experiment == experiment}
    return "[^/]+" if known == set(chosen) else "|".join(map(re.escape, chosen))


def as_json(value):
    """Params are compared as unordered values: one string with sorted keys per job."""
    return json.dumps(value, sort_keys=True)


def identity_of(variant, key):
    """What makes a variant's runs what they are: the recipe by meaning, or the versions of what computes them.

    Versions as the records hold them while these are current: what was certified after a run changes nothing.
    """
    made = {as_json(plan.result[key]) for plan in PLANS_OF[variant.path] if plan.current}
    present = as_json(PLANS_OF[variant.path][0].identity[key])
    return made.pop() if key == "arithmetic" and len(made) == 1 else present


def arithmetic(*parts):
    """Versions of what computes a job's numbers."""
    return as_json(numerics.versions(parts))


def shown(folder, names, suffix, category, caption):
    """Files that snakemake --report shows, with what is said about them."""
    about = f"report/{caption}.rst"
    return [report(f"{folder}/{name}.{suffix}", about, category, labels={"name": name}) for name in names]


def pretrained_files(experiment):
    """Public weights that an experiment starts from; their age counts as little as the dataset's."""
    name = STUDY.experiments[experiment].pretrained
    files = map(str, pretrained.files(name)) if name else []
    return list(files) if identity.OTHER_WEIGHTS in STALE else [ancient(file) for file in files]


def start_files(variant):
    """Weights that a fine-tune starts from; of a run, the hash in its record stands for the checkpoint."""
    if not workflow.is_main_process:  # inside a cluster's job, which no option reaches and where settings are late: of
        workflow.execution_settings.keep_going = True  # several variants in it one that fails does not stop the others
    parents = [parent for seed in variant.seeds if (parent := variant.parent(seed))]
    files = [str(parent.record) for parent in parents] + [ancient(str(parent.checkpoint)) for parent in parents]
    return files + pretrained_files(variant.experiment)
