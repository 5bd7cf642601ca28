"""What is packed, which versions it asks for, and what its messages say to install."""

import configparser
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("overfeat_tf", "serving", "training")
DEPLOY = ("RUNBOOK.md", "models.config", "batching.config", "monitoring.config", "prometheus.yml", "kubernetes.yaml")
# What messages may say to install, all of it published.
PUBLISHED = {
    "apache-beam",
    "keras-hub",
    "opencv-python-headless",
    "pillow-heif",
    "pycocotools",
    "scikit-learn",
    "scipy",
    "torch",
}
BUILD = "import setuptools.build_meta as backend; print(backend.build_wheel('dist'), backend.build_sdist('dist'))"


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(REPOSITORY / "setup.cfg")
    return parser


def test_the_wheel_and_the_sdist_carry_the_deploy_files_and_the_runbook(tmp_path):
    pytest.importorskip("setuptools")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in PACKAGES:
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=ignored)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, tmp_path)
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,), (sdist,) = (tmp_path / "dist").glob("*.whl"), (tmp_path / "dist").glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    with tarfile.open(sdist) as archive:
        source = {name.partition("/")[2] for name in archive.getnames()}
    tracked = {
        f"serving/deploy/{path.name}" for path in (REPOSITORY / "serving" / "deploy").iterdir() if path.is_file()
    }
    tracked |= {"training/deploy/workers.yaml", "serving/embedded/rest/page/index.html"}
    assert {f"serving/deploy/{name}" for name in DEPLOY} <= tracked
    assert tracked <= packed and tracked <= source
    assert not [name for name in packed if name.startswith("tests")]


def test_python_versions_agree(setup_cfg):
    listed = re.findall(r"Python :: (3\.\d+)", setup_cfg["metadata"]["classifiers"])
    workflow = (REPOSITORY / ".github" / "workflows" / "ci.yml").read_text()
    assert re.findall(r'"(3\.\d+)"', re.search(r"python: \[(.*)\]", workflow)[1]) == listed
    first, last = (int(version.partition(".")[2]) for version in (listed[0], listed[-1]))
    assert setup_cfg["options"]["python_requires"] == f">=3.{first},<3.{last + 1}"


def test_bounds_let_programs_in_that_need_protobuf_6(setup_cfg):
    bounds = dict(re.findall(r"^([\w-]+)>=([\d.]+)", setup_cfg["options"]["install_requires"], re.MULTILINE))
    for name in ("grpcio", "grpcio-health-checking", "grpcio-reflection"):
        assert tuple(map(int, bounds[name].split("."))) < (1, 85), f"{name} of 1.85 needs protobuf 7"
    assert "lowest-direct" in (REPOSITORY / ".ci" / "lowest").read_text()


def test_messages_name_only_packages_that_are_published():
    named = set()
    files = [path for package in PACKAGES for path in (REPOSITORY / package).rglob("*") if path.is_file()]
    files = [path for path in files if path.suffix in (".py", ".md", ".yaml", ".yml", ".config", ".html", ".js")]
    for file in files:
        for line in re.findall(r"pip install ([^\"\n`)]+)", file.read_text()):
            named |= {re.split(r"[,:;]", word)[0].strip("'") for word in line.split()[:1]}
    named = {name for name in named if not name.startswith(".")}  # this folder
    assert named <= PUBLISHED, named - PUBLISHED
