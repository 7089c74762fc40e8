"""Progress: a bar in a terminal, and in a log file a plain line now and then."""

import sys
import time
from typing import Any

from tqdm import tqdm

# In a log file a line is written once there is this much more to tell, and this long after the
# last: whichever comes later, so neither short runs nor long ones fill it.
SHARE_OF_A_LINE, SECONDS_OF_A_LINE = 0.1, 60.0
LINE = "{desc}: {n_fmt}, {elapsed} so far{postfix}"
OF = "{desc}: {percentage:.0f}% ({n_fmt}/{total_fmt}), {elapsed} so far, {remaining} left{postfix}"


class Bar(tqdm):  # type: ignore[type-arg]  # tqdm is not generic when it runs
    """A progress bar on standard error: a context manager, or a loop over an `iterable`.

    `total` is None where nobody knows it; `doing` stands before the bar; `more` is of tqdm.
    """

    def __init__(self, total: int | None, doing: str, *, shown: bool = True, **more: Any) -> None:
        # A notebook draws bars though its stream is no terminal.
        drawn = "ipykernel" in sys.modules or (sys.stderr is not None and sys.stderr.isatty())
        self._told, self._told_at = more.get("initial", 0), time.monotonic()
        given: Any = {"leave": False, "disable": not shown or sys.stderr is None, **more}
        # In this mode tqdm itself writes nothing.
        super().__init__(total=total, desc=doing, gui=not drawn, **given)

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        """Draw the bar; where there is no terminal, write a line if one is due."""
        if not self.gui:
            # tqdm draws it after each message, also where its delay is not over, and leaves it.
            late = not self.delay or self.format_dict["elapsed"] >= self.delay
            return super().display(msg, pos) if late else None
        now, self.bar_format = time.monotonic(), OF if self.total else LINE
        enough = self.n - self._told >= SHARE_OF_A_LINE * (self.total or 0)
        if enough and now - self._told_at >= SECONDS_OF_A_LINE:
            self._told, self._told_at = self.n, now
            self.fp.write(f"{self}\n")
        return None

    def reach(self, done: int, total: int) -> None:
        """Show that so many of a total are done."""
        self.total = total
        self.update(done - self.n)

    def clear(self, nolock: bool = False) -> None:
        """Take the bar away while something else is written."""
        if not self.gui:
            super().clear(nolock=nolock)


def byte_bar(total: int | None, doing: str, shown: bool, *, leave: bool = False) -> Bar:
    """Return a progress bar that counts bytes."""
    return Bar(total, doing, shown=shown, unit="B", unit_scale=True, leave=leave)
