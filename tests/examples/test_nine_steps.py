from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "examples" / "seed_image_text" / "nine_steps.py"


def test_the_example_learns_what_only_the_picture_tells() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    for colour in ("red", "green", "blue", "white"):
        assert f"a picture of {colour}: 'a [MASK] coat' is 'a {colour} coat'" in done.stdout
