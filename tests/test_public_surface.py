"""`maskery.__all__` is what it says, and importing the package is cheap."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import maskery
from maskery.core import errors as core_errors


def test_every_public_name_exists_and_is_documented() -> None:
    for name in maskery.__all__:
        value = getattr(maskery, name)
        assert isinstance(value, str) or value.__doc__, name


def test_the_surface_is_small_and_sorted_and_in_dir() -> None:
    assert len(maskery.__all__) <= 60
    assert list(maskery.__all__) == sorted(maskery.__all__)
    assert dir(maskery) == maskery.__all__


def test_type_checkers_see_the_same_names() -> None:
    """What is imported for them alone is what is found when a name is used."""
    tree = ast.parse(Path(maskery.__file__).read_text("utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    declared = {alias.asname or alias.name for node in imports for alias in node.names}
    assert {*declared, "__version__"} == set(maskery.__all__)
    for node in imports:
        module = importlib.import_module(str(node.module))
        for alias in node.names:
            name = alias.asname or alias.name
            assert getattr(maskery, name) is getattr(module, alias.name)


def test_it_holds_every_error() -> None:
    errors = {name for name, value in vars(core_errors).items() if isinstance(value, type)}
    assert errors <= set(maskery.__all__)


def test_it_serves_text_and_image_text_alike() -> None:
    people_use = {
        *("train", "TextRunConfig", "PairsRunConfig", "PersonSearchRunConfig", "Stepper"),
        *("mask", "Masker", "MaskCollator", "Selection", "MaskedLanguageModel", "open_model"),
        *("open_image_text", "convert", "evaluate", "score", "Filler", "retrieval_figures"),
        *("search", "explain"),
    }
    assert people_use <= set(maskery.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(maskery, "no_such_name")


def test_importing_the_package_and_asking_for_help_imports_nothing_heavy() -> None:
    program = (
        "import sys, maskery.cli.main as m; m.main(['--help'])\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'tyro'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "maskery quickstart" in done.stdout


def test_the_help_of_training_imports_no_torch() -> None:
    program = (
        "import sys, maskery.cli.main as m\n"
        "try: m.main(['train', 'text', '--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--mask-rate" in done.stdout
