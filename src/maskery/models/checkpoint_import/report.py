"""What became of every key of an imported checkpoint."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """Nothing of a checkpoint goes unmentioned.

    Attributes:
        kind: What the checkpoint was taken for: "albef", "bert" or "vit".
        used: By name in the file, where in the model it went.
        missing: Parameters of the model that the file does not have; freshly initialised.
        left_over: Names in the file that the model has no place for.
        resized: Position tables that were interpolated, with their old and new lengths.
    """

    kind: str
    used: dict[str, str]
    missing: tuple[str, ...]
    left_over: tuple[str, ...]
    resized: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The report as text, one line a fact."""
        lines = [
            f"read as {self.kind}: {len(self.used)} used, {len(self.missing)} missing, "
            f"{len(self.left_over)} left over"
        ]
        lines += [f"  resized    {name}" for name in self.resized]
        lines += [f"  missing    {name} (freshly initialised)" for name in self.missing]
        lines += [f"  left over  {name}" for name in self.left_over]
        return lines
