from __future__ import annotations

from hypothesis import settings

# No test is timed: a busy machine must not fail one.
settings.register_profile("maskery", deadline=None)
settings.load_profile("maskery")
