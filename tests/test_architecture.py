"""The arrows between the rooms of src/oscillations: every row imports only rows below it."""

import ast
import pstats
import subprocess
import sys

from conftest import ROOT

PACKAGE = ROOT / "src/oscillations"
ROWS = [
    {"__main__"}, {"cli"}, {"report"}, {"jobs"}, {"records"}, {"study"}, {"nn"},
    {"methods", "posttraining", "models", "datasets"}, {"engine"}, {"core"},
]  # fmt: skip
HEIGHT = {room: len(ROWS) - number for number, row in enumerate(ROWS) for room in row}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports():
    """(file, room, imported room) of every import of this package, at any depth of a file."""
    for file in sorted(PACKAGE.rglob("*.py")):
        path = file.relative_to(PACKAGE)
        room = path.parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "oscillations":
                names = [f"oscillations.{alias.name}" for alias in node.names] if node.module == "oscillations" else []
                for module in names or [node.module]:
                    yield str(path), room, room_of(module)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] == "oscillations":
                        yield str(path), room, room_of(alias.name)


def test_every_room_has_its_row():
    rooms = {
        file.name.removesuffix(".py") for file in PACKAGE.iterdir() if file.name not in ("__init__.py", "__pycache__")
    }
    assert rooms == set(HEIGHT)


def test_every_row_imports_only_rows_below_it():
    found = list(imports())
    assert len(found) > 300
    wrong = [(path, other) for path, room, other in found if room != other and HEIGHT[other] >= HEIGHT[room]]
    assert wrong == []


def test_the_report_never_imports_jobs():
    assert not [path for path, room, other in imports() if room == "report" and other == "jobs"]
    assert not [path for path, room, other in imports() if room == "jobs" and other == "report"]


def test_the_document_names_every_room():
    text = (ROOT / "docs/architecture.md").read_text()
    for room in HEIGHT:
        assert f"`{room}/`" in text or f"`{room}.py`" in text or room == "__main__", room


def test_every_benchmark_finds_what_it_measures():
    """No test runs them; what they import must be there."""
    names = sorted(file.stem for file in (ROOT / "benchmarks").glob("*.py"))
    code = f"import sys; sys.path.insert(0, 'benchmarks'); [__import__(name) for name in {names}]"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_command_that_is_watched_ends_as_any_program_does(tmp_path):
    """Else it leaves at once, and a profiler would never write what it has seen."""
    profile = tmp_path / "profile"
    command = [sys.executable, "-m", "cProfile", "-o", str(profile), "-m", "oscillations", "check", "--study", "quick"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert any(name == "check" for _, _, name in pstats.Stats(str(profile)).stats)
