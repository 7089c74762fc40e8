"""What happens to examples that cannot be used: fatal, or counted and told."""

from __future__ import annotations

from typing import Literal

from maskery.core.errors import DataError


class Skipped:
    """Counts what is left out, so that nothing is lost silently.

    Attributes:
        what: Singular noun of what is counted.
        policy: `"fail"` raises the first error, `"skip"` counts.
        count: How many were skipped.
        first: The message of the first.
    """

    def __init__(self, what: str, policy: Literal["skip", "fail"]) -> None:
        self.what = what
        self.policy = policy
        self.count = 0
        self.first = ""

    def report(self, error: DataError) -> None:
        """Count `error`.

        Raises:
            DataError: `error` itself, where the policy is to fail.
        """
        if self.policy == "fail":
            raise error
        self.count += 1
        self.first = self.first or str(error)

    def __str__(self) -> str:
        """One line for the log; empty if nothing was skipped."""
        if not self.count:
            return ""
        plural = "" if self.count == 1 else "s"
        return f"{self.count} {self.what}{plural} skipped; the first: {self.first}"
