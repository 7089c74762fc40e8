from __future__ import annotations

from pathlib import Path

from fork_server import ForkServer

SCRIPT = Path(__file__).parents[2] / "examples" / "seed_image_text" / "nine_steps.py"


def test_the_example_learns_what_only_the_picture_tells(server: ForkServer) -> None:
    done = server.python(SCRIPT)
    assert done.returncode == 0, done.stderr
    for colour in ("red", "green", "blue", "white"):
        assert f"a picture of {colour}: 'a [MASK] coat' is 'a {colour} coat'" in done.stdout
