"""Phases of one run: each is a run of its own that begins where the one before it ended."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from maskery.core.errors import ConfigError
from maskery.core.processes import join_processes
from maskery.runs.frame.config_file import save_config, with_settings
from maskery.runs.frame.run_folder import held_run_folder
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.run import TextResult

# They hold for all phases: of one model in one run, whose ends `until` names.
COMMON = ("model", "output", "resume", "from_run", "lr_restart", "phases", "epochs", "max_steps")


def train_phases(
    config: TextRunConfig, default: Path, run: Callable[[TextRunConfig], TextResult]
) -> TextResult:
    """Train the phases in `phase-1`, `phase-2`, ... of the run folder; returns the last's result.

    Finished phases are found finished, so that a resumed run goes on in the one that was stopped.
    """
    planned, processes = phases_of(config), join_processes()
    # With paths that hold from any folder.
    both = zip(config.phases, planned, strict=True)
    phases = tuple({**given, "corpus": [*one.corpus]} for given, one in both)
    result: TextResult | None = None
    with held_run_folder(processes, config.output, default, resume=config.resume == "auto") as held:
        if processes.is_main:
            save_config(held.path, replace(config, output=held.path, phases=phases))
        for number, phase in enumerate(planned, 1):
            phase = replace(phase, output=held.path / f"phase-{number}", resume="auto")
            if result is not None:
                before = f"{result.folder}@{result.summary.steps}"
                phase = replace(phase, from_run=before, lr_restart=True)
            result = run(phase)
    assert result is not None
    return result


def phases_of(config: TextRunConfig) -> list[TextRunConfig]:
    """Return the settings of each phase: the run's, what the phase changes, and its last step."""
    found: list[TextRunConfig] = []
    step = int(config.from_run.rpartition("@")[2]) if config.from_run else 0
    tokens = step * (config.training.batch_tokens or 0)
    for number, given in enumerate(config.phases, 1):
        changes, where = dict(given), f"phase {number}"
        until = str(changes.pop("until", ""))
        common = [name for name in COMMON if name in changes]
        if common or not until:
            needs = f"{common[0]} is the whole run's" if common else "it names no end"
            raise ConfigError(f"{where}: {needs}; give until, and only what the phase changes")
        if found:
            changes.setdefault("warmup_share", 0.0)
        phase = with_settings(replace(config, phases=()), changes, where=where)
        last = phase.training.steps_of(f"{where}: until", until, after=(step, tokens))
        if last <= step:
            raise ConfigError(
                f"{where} ends at step {last} (until: {until}), and begins at step {step}; phases "
                f"go forward"
            )
        tokens += (last - step) * (phase.training.batch_tokens or 0)
        step, more = last, {"max_steps": last, "epochs": last}  # an epoch has at least one step
        found.append(with_settings(phase, more).anchored())
    return found
