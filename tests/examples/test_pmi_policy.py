"""PMI masking from one file outside the package: phrases fall together, and the rate is kept."""

from __future__ import annotations
