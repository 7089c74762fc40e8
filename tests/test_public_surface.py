"""`maskery.__all__` is what it says, and importing the package is cheap."""

from __future__ import annotations

import subprocess
import sys

import maskery


def test_every_public_name_exists_and_is_documented() -> None:
    for name in maskery.__all__:
        value = getattr(maskery, name)
        assert isinstance(value, str) or value.__doc__


def test_the_surface_is_small_and_sorted_and_in_dir() -> None:
    assert len(maskery.__all__) <= 20
    assert dir(maskery) == sorted(maskery.__all__)


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
