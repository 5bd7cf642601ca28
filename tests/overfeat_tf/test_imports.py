"""Imports run one way (the house's plan): each module imports only from its own floor or those beneath it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOORS = (
    ("presets", "geometry", "boxes", "matching", "options", "cook_toom", "arithmetic", "tiles", "header_bytes"),
    (
        "network",
        "execution",
        "context",
        "offset_pooling",
        "dense",
        "views",
        "decode",
        "image_header",
        "jpeg_header",
        "greedy",
        "greedy_round",
    ),
    ("scan", "features", "voting", "merging", "calibration", "draw"),
    ("tasks",),
    ("inference", "callables"),
    ("model",),
    ("loading", "release_weights", "stages"),
    ("api", "stage_panels", "draw_stages"),
    ("__init__",),  # overfeat_tf itself: gives the public names
)
RANKS = {f"overfeat_tf.{name}": rank for rank, names in enumerate(FLOORS) for name in names}
RANKS["overfeat_tf"] = RANKS.pop("overfeat_tf.__init__")
# Top down: the command line may import everything, training and serving never each other.
PACKAGES = ("overfeat_tf", "training", "serving", "benchmarks")
ALLOWED = {
    "overfeat_tf": {"overfeat_tf"},
    "training": {"overfeat_tf", "training"},
    "serving": {"overfeat_tf", "serving"},
    "benchmarks": {"overfeat_tf", "overfeat_tf.cli", "training", "serving", "benchmarks"},
    "overfeat_tf.cli": {"overfeat_tf", "overfeat_tf.cli", "training", "serving", "benchmarks"},
}


def modules(root):
    """Give the path of every module of the packages, by its dotted name."""
    paths = [path for package in PACKAGES for path in (root / package).rglob("*.py")]
    dotted = {".".join(path.relative_to(root).with_suffix("").parts): path for path in paths}
    return {name.removesuffix(".__init__"): path for name, path in dotted.items()}


def imports(name, path, known):
    """Yield the dotted names of the modules among `known` that a module imports, at its top or inside a function."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from (alias.name for _ in range(alias.name in known))
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                # `from package import module` means the module; any other name comes from the package itself.
                inner = f"{source}.{alias.name}"
                yield from (found for found in [inner if inner in known else source] if found in known)


def home(name):
    """Give the house that a module belongs to."""
    return "overfeat_tf.cli" if name.startswith("overfeat_tf.cli") else name.partition(".")[0]


def violations(root):
    """Say in a line each what imports upward or sideways, and what has no floor yet."""
    known = modules(root)
    found = []
    for name, path in known.items():
        if home(name) == "overfeat_tf" and name not in RANKS:
            found.append(f"{name} has no floor: give it one in FLOORS")
            continue
        for other in imports(name, path, known):
            upward = name in RANKS and RANKS.get(other, -1) > RANKS[name]
            if home(other) not in ALLOWED[home(name)] or upward:
                found.append(f"{name} imports {other}")
    return found


def test_imports_run_one_way():
    assert len(modules(ROOT)) > 20
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("module", "line", "violation"),
    [
        ("overfeat_tf/boxes.py", "from overfeat_tf import tasks as t", "overfeat_tf.boxes imports overfeat_tf.tasks"),
        ("overfeat_tf/scan.py", "import overfeat_tf.tasks", "overfeat_tf.scan imports overfeat_tf.tasks"),
        ("overfeat_tf/tasks.py", "from .inference import Inference", "overfeat_tf.tasks imports overfeat_tf.inference"),
        ("overfeat_tf/model.py", "from . import api", "overfeat_tf.model imports overfeat_tf.api"),
        ("overfeat_tf/model.py", "from overfeat_tf import detect", "overfeat_tf.model imports overfeat_tf"),
        ("overfeat_tf/network.py", "def f():\n    import training.train", "overfeat_tf.network imports training.train"),
        ("overfeat_tf/api.py", "from overfeat_tf.cli import main", "overfeat_tf.api imports overfeat_tf.cli"),
        ("serving/server.py", "from training import train", "serving.server imports training.train"),
        ("training/train.py", "if True:\n    from serving import server", "training.train imports serving.server"),
        ("training/train.py", "from overfeat_tf.cli import main", "training.train imports overfeat_tf.cli"),
        ("overfeat_tf/shed.py", "", "overfeat_tf.shed has no floor: give it one in FLOORS"),
        # What may be: downward, on one floor, and from the command line anything.
        ("overfeat_tf/voting.py", "from overfeat_tf.scan import ScaleScan", None),
        ("overfeat_tf/tasks.py", "import tensorflow\nfrom overfeat_tf import boxes, scan", None),
        ("overfeat_tf/cli/__init__.py", "from training import train\nfrom serving import server", None),
        ("training/train.py", "from overfeat_tf.model import Model", None),
    ],
)
def test_the_checker_catches_what_it_is_for(tmp_path, module, line, violation):
    names = [f"overfeat_tf/{name}" for floor in FLOORS for name in floor]
    for name in (*names, "overfeat_tf/cli/__init__", "training/train", "serving/server", "serving/__init__"):
        (tmp_path / f"{name}.py").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.py").touch()
    assert violations(tmp_path) == []
    (tmp_path / module).write_text(line)
    assert violations(tmp_path) == ([violation] if violation else [])


def test_the_package_and_its_tables_import_without_tensorflow():
    quick = "import overfeat_tf, overfeat_tf.cli.main, overfeat_tf.geometry, overfeat_tf.options, overfeat_tf.presets"
    code = f"import sys; {quick}; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
