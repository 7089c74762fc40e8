from __future__ import annotations

import subprocess
import sys

import pytest

from maskery.core.errors import ConfigError
from maskery.people.config import PeopleConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_people": 0}, "num_people is 0"),
        ({"images_per_person": 0}, "images_per_person is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"width": 8}, "width is 8"),
        ({"height": 5000}, "height is 5000"),
        ({"splits": (0.5, 0.5, 0.5)}, "add up to 1"),
        ({"splits": (1.5, -0.5, 0.0)}, "not negative"),
        ({"num_people": 3}, "nobody"),
        ({"image_format": "gif"}, "image_format is 'gif'"),
        ({"style": 3}, "style is 3: it must be one of 1, 2"),
        ({"swap_captions": 1.0}, "swap_captions is 1.0: it must be from 0 to below 1; try"),
        ({"swap_captions": -0.1}, "swap_captions is -0.1"),
    ],
)
def test_settings_outside_their_range(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PeopleConfig(**settings)  # type: ignore[arg-type]


def test_split_sizes_add_up() -> None:
    for num_people in (10, 11, 137, 2000):
        assert sum(PeopleConfig(num_people=num_people).split_sizes()) == num_people


def test_config_modules_are_light() -> None:
    """The command line builds its flags from them."""
    code = (
        "import sys, maskery.people.config, maskery.data.pairs.config, "
        "maskery.data.images.config; "
        "heavy = {'torch', 'numpy', 'PIL', 'pyarrow', 'transformers'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_modules_import_without_pillow_and_say_what_is_missing() -> None:
    code = (
        "import sys, importlib, pkgutil; sys.modules['PIL'] = None\n"
        "for part in ('people', 'data.pairs', 'data.images'):\n"
        "    package = importlib.import_module(f'maskery.{part}')\n"
        "    for module in pkgutil.iter_modules(package.__path__):\n"
        "        importlib.import_module(f'{package.__name__}.{module.name}')\n"
        "import io\n"
        "from maskery.core.errors import MissingExtraError\n"
        "from maskery.people.attributes import identity_at\n"
        "from maskery.people.drawing import render\n"
        "from maskery.data.images.loading import load_image\n"
        "for call in (lambda: render(identity_at(0, 0), 0, (64, 128)),\n"
        "             lambda: load_image(io.BytesIO(b'x'), name='x')):\n"
        "    try:\n"
        "        call()\n"
        "    except MissingExtraError as error:\n"
        "        assert 'maskery[vision]' in str(error), error\n"
        "    else:\n"
        "        raise AssertionError('no error')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
