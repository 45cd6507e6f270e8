"""What is uploaded: sdist and wheel build, are complete, and run in an environment of their own.

The environment is a new venv with the wheel installed. The dependencies are gigabytes, so a `.pth` file puts the folder
of those that are installed already behind its own. An editable install of the repository in there is not seen: `.pth`
files of a folder that a `.pth` file names are not read.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from PIL import Image

import wsol

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def run(*words, cwd, statuses=(0,), **changes):
    """Run a command away from the repository; return what it wrote."""
    plain = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "WSOL_DATA")}
    done = subprocess.run(words, cwd=cwd, env={**plain, **changes}, capture_output=True, text=True)
    assert done.returncode in statuses, f"{words}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The sdist, and the wheel that is built from it."""
    for name in ("build", "hatchling"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    folder = tmp_path_factory.mktemp("dist")
    path = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT), cwd=folder, **path)
    return folder


@pytest.fixture(scope="module")
def environment(dist, tmp_path_factory):
    """A venv that holds the wheel, and its folder of commands."""
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, with_pip=False)
    names = {"base": str(home), "platbase": str(home)}
    scripts, packages = Path(sysconfig.get_path("scripts", "venv", names)), sysconfig.get_path("purelib", "venv", names)
    wheel = next(dist.glob("*.whl"))
    install = ["install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    run(sys.executable, "-m", "pip", "--python", str(scripts / "python"), *install, cwd=home)
    shared = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    (Path(packages) / "shared.pth").write_text("\n".join(dict.fromkeys(shared)) + "\n")
    return scripts


def tracked(folder):
    """The files of a folder that git knows, or its modules where there is no git."""
    listed = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0 and listed.stdout:
        return {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.py")}


def test_the_version_comes_from_one_place(dist):
    wheel = next(dist.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        facts = Parser().parsestr(archive.read(name).decode())
    assert facts["Version"] == wsol.__version__
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"[{wsol.__version__}]" in changes or "[Unreleased]" in changes
    assert re.search(rf"^version: ['\"]?{re.escape(wsol.__version__)}['\"]?$", citation, re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(facts.get_all("Provides-Extra")) == set(project["optional-dependencies"])
    assert facts["License-Expression"] == "Apache-2.0"


def test_twine_finds_nothing(dist):
    if importlib.util.find_spec("twine") is None:
        pytest.skip("twine is not installed")
    files = [str(path) for path in sorted(dist.iterdir())]
    assert len(files) == 2
    run(sys.executable, "-m", "twine", "check", "--strict", *files, cwd=dist)


def test_the_wheel_holds_the_package_and_nothing_else(dist):
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as archive:
        names = set(archive.namelist())
    missing = tracked("wsol") - names
    assert not missing
    for needed in ("wsol/report/templates/report.html.j2", "wsol/data/prompts/voc.yaml"):
        assert needed in names
    assert {name.partition("/")[0] for name in names} == {"wsol", f"wsol-{wsol.__version__}.dist-info"}
    assert not [name for name in names if "__pycache__" in name or name.endswith((".nbi", ".nbc"))]
    assert sum(item.file_size for item in zipfile.ZipFile(next(dist.glob("*.whl"))).infolist()) < 5 * 2**20


def test_the_sdist_holds_what_the_tests_need(dist):
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("wsol", "tests", "configs", "docs", "tools"):
        assert not tracked(folder) - names
    for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"):
        assert name in names
    assert not [name for name in names if name.startswith(("runs/", ".venv", "dist/"))]


def test_the_installed_package_runs(environment, tmp_path):
    where = run(str(environment / "python"), "-c", "import wsol; print(wsol.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(environment.parent)
    assert run(str(environment / "wsol"), "--version", cwd=tmp_path).split() == ["wsol", wsol.__version__]
    said = run(str(environment / "wsol"), "info", cwd=tmp_path, statuses=(0, 1))  # 1: packages around it clash
    for name in ("gradcam", "densecrf", "cutmix", "voc"):
        assert name in said
    assert "photo" in run(str(environment / "wsol"), "demo", "--help", cwd=tmp_path).lower()


def test_the_installed_package_shows_where_things_are(environment, tmp_path, lite0_weights):
    Image.linear_gradient("L").convert("RGB").resize((131, 97)).save(tmp_path / "photo.png")
    words = ["demo", "--image", "photo.png", "--out", "out", "--device", "cpu"]
    run(str(environment / "wsol"), *words, cwd=tmp_path, OMP_NUM_THREADS="1")
    assert list((tmp_path / "out").glob("*.html"))
    assert list((tmp_path / "out").rglob("*.png"))
