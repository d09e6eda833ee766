"""The layers: imports go one way, each side runs without the other's engine, and modules stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import flmrec_spark

PACKAGE = Path(flmrec_spark.__file__).parent
ROOT = PACKAGE.parent
# Lowest first; a module imports from its own line and those above it. `lm` and `tables` do not see each other.
LAYERS = (
    ("columns",),
    ("errors", "yaml_text", "fields"),
    (
        "files",
        "cli",
        "sections",
        "model_sections",
        "training_sections",
        "config",
        "pieces",
        "prompts",
        "metrics",
        "list_metrics",
        "bootstrap",
        "elimination",
        "ranking",
        "reranking",
    ),
    ("lm", "tables"),
    ("stages",),
    ("ship", "session", "report"),
    ("fitting", "stacking", "strategies"),
    ("job",),
    ("scoring", "dry_run", "measuring", "publishing"),
)
APART = {("lm", "tables"), ("tables", "lm")}
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
MODULES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted([*ROOT.glob("jobs/*.py"), *ROOT.glob("scripts/*.py"), *ROOT.glob("benchmarks/*.py")])
LONGEST = 250


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imported(file: Path) -> list[tuple[int, str]]:
    """(line, module) of every import, wherever it stands; for `from flmrec_spark import x`, flmrec_spark.x."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import"
            within = node.module == "flmrec_spark"
            found += [
                (node.lineno, f"{node.module}.{alias.name}" if within else str(node.module)) for alias in node.names
            ]
    return found


def test_every_part_of_the_package_has_its_layer() -> None:
    parts = {part_of(name_of(file)) for file in MODULES} - {"__init__"}
    assert parts - set(LEVEL) == set()


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_imports_go_down_only(file: Path) -> None:
    own = part_of(name_of(file))
    for line, module in imported(file):
        if not module.startswith("flmrec_spark.") or own == "__init__":
            continue
        other = part_of(module)
        if other not in LEVEL:
            assert other.startswith("__"), f"{file}:{line}: {module} is no part of the package"
            continue
        assert LEVEL[other] <= LEVEL[own], f"{file}:{line}: {own} imports {other}, which stands above it"
        assert (own, other) not in APART, f"{file}:{line}: {own} imports {other}"


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_nothing_in_the_package_imports_a_job_or_a_script(file: Path) -> None:
    roots = {module.split(".")[0] for _, module in imported(file)}
    assert not roots & {"jobs", "scripts", "benchmarks", "tests"}


@pytest.mark.parametrize("file", SCRIPTS, ids=name_of)
def test_scripts_import_no_script(file: Path) -> None:
    roots = {module.split(".")[0] for _, module in imported(file)}
    assert not roots & {"jobs", "scripts", "tests"}


@pytest.mark.parametrize(
    ("part", "engines"),
    [
        ("lm", {"pyspark", "delta", "py4j"}),
        ("tables", {"torch", "transformers", "safetensors"}),
        *[(part, {"pyspark", "delta", "py4j", "torch", "transformers"}) for part in LAYERS[2]],
    ],
)
def test_no_module_names_the_engine_of_the_other_side(part: str, engines: set[str]) -> None:
    for file in MODULES:
        if part_of(name_of(file)) == part:
            for line, module in imported(file):
                assert module.split(".")[0] not in engines, f"{file}:{line}: {part} imports {module}"


@pytest.mark.parametrize(("part", "engine"), [("lm", "pyspark"), ("tables", "torch")])
def test_every_module_imports_where_the_other_engine_is_not_installed(part: str, engine: str) -> None:
    modules = [name_of(file).removesuffix(".__init__") for file in MODULES if part_of(name_of(file)) == part]
    assert modules
    code = (
        "import sys, importlib\n"
        f"sys.modules[{engine!r}] = None\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", [*MODULES, *SCRIPTS], ids=name_of)
def test_a_module_fits_its_limit_and_says_what_it_is_for(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST
    assert ast.get_docstring(ast.parse(text)), f"{file}: no docstring"


@pytest.mark.parametrize("file", [file for file in MODULES if file.name == "__init__.py"], ids=name_of)
def test_a_package_file_holds_a_docstring_and_the_version_alone(file: Path) -> None:
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_version = isinstance(node, ast.Assign) and [ast.unparse(name) for name in node.targets] == ["__version__"]
        assert is_text or is_version, f"{file}:{node.lineno}"


def test_no_module_is_a_drawer_for_everything() -> None:
    names = {file.stem for file in [*MODULES, *SCRIPTS]}
    assert not names & {"utils", "util", "helpers", "helper", "common", "misc"}
