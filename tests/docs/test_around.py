"""The files around the package say what the package and its pins say."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

import maskery

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def pinned(package: str) -> str:
    pins = (ROOT / "constraints.txt").read_text("utf-8")
    found = re.search(rf"^{package}==.+$", pins, re.MULTILINE)
    assert found, package
    return found[0]


def test_hooks_before_a_commit_have_the_ruff_of_the_tests() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    for hook in hooks["repos"][0]["hooks"]:
        assert hook["additional_dependencies"] == [pinned("ruff")]


def test_the_public_ci_tries_every_python_that_is_claimed() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text("utf-8"))["jobs"]
    matrix = jobs["versions"]["strategy"]["matrix"]
    claimed = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert matrix["python"] == claimed
    assert PROJECT["requires-python"] == f">={claimed[0]}"


def test_one_version_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == PROJECT["version"] == maskery.__version__
    assert citation["license"] == PROJECT["license"]


def test_containers_name_extras_and_files_that_exist() -> None:
    for name in ("Dockerfile", "examples/space/Dockerfile"):
        text = (ROOT / name).read_text("utf-8")
        for extras in re.findall(r"\[([a-z,]+)\]'?\"?$", text, re.MULTILINE):
            assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"]), name
    copied = re.findall(r"^COPY (.+) \S+$", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    ignored = (ROOT / ".dockerignore").read_text("utf-8")
    for path in " ".join(copied).split():
        assert (ROOT / path).exists()
        assert f"!{path}\n" in ignored
