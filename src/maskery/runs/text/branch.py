"""Begin a run at a checkpoint of another (`--from RUN@STEP`), as each phase of a run does."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file

from maskery.core.errors import ConfigError
from maskery.core.processes import join_processes
from maskery.core.system import replace_folder
from maskery.runs.frame.config_file import OpenRun, open_run, save_config, with_settings
from maskery.runs.frame.run_folder import TOKENIZER, held_run_folder
from maskery.runs.frame.run_frame import CHECKPOINTS
from maskery.runs.frame.verify import kept_checkpoints
from maskery.runs.text.config import TextRunConfig
from maskery.runs.text.prepare import TextRun, head_steps
from maskery.runs.text.run import TextResult
from maskery.training.checkpoint import Checkpoints, find_damage
from maskery.training.loop import TrainingLoop, planned_steps
from maskery.training.snapshot import EXTRA, MODEL, OPTIMISER, Position, Snapshot, differences

log = logging.getLogger(__name__)

# What of a run's identity decides which text comes when.
DATA = (
    "corpus_fingerprint", "eval_data_fingerprint", "other_fingerprints", "held_out_share",
    "group_column", "mix", "shuffle_shards", "layout", "max_length", "seed", "batch_tokens",
)  # fmt: skip
# They hold for all phases: of one model in one run, whose ends `until` names.
COMMON = ("model", "output", "resume", "from_run", "lr_restart", "phases", "epochs", "max_steps")


def origin(text: str | None) -> tuple[Path, int | None]:
    """Return the run folder and the step of RUN or RUN@STEP; None for the newest."""
    folder, _, step = (text or "").rpartition("@")
    if not folder or Path(text or "").is_dir():
        return Path(text or ""), None
    if not step.isdecimal():
        raise ConfigError(f"--from {text}: a step follows the @, as in {folder}@500")
    return Path(folder), int(step)


def open_origin(text: str) -> OpenRun:
    """Read the text run that RUN or RUN@STEP names."""
    run = open_run(origin(text)[0])
    if run.kind != TextRunConfig.kind:
        raise ConfigError(f"--from {text}: a run of kind {run.kind} has no text to go on with")
    return run


def resolved(config: TextRunConfig) -> TextRunConfig:
    """Return a copy whose `from_run` names an absolute folder and a step that is there."""
    (folder, step), path = origin(config.from_run), _checkpoint(config)
    if config.output and folder.resolve() == config.output.resolve():
        problem = f"--from {config.from_run}: a branch never changes the run that it begins at"
        raise ConfigError(f"{problem}; name another folder with --output")
    return replace(config, from_run=f"{folder.resolve()}@{step or int(path.name[5:])}")


def kept_tokenizer(config: TextRunConfig) -> Path:
    """Return the folder of the other run's tokenizer, copied into this run's."""
    theirs = origin(config.from_run)[0] / TOKENIZER
    own = theirs if config.output is None else config.output / TOKENIZER
    if theirs.is_dir() and not own.is_dir():
        partial = own.with_name(f"{TOKENIZER}.partial")
        replace_folder(shutil.copytree(theirs, partial, dirs_exist_ok=True), own)
    return own


def branch_of(config: TextRunConfig, identity: str) -> tuple[Path, Position]:
    """Return the checkpoint and the place: in the other run's data where this run's is alike."""
    path = _checkpoint(config)
    there = Position.read(path)
    theirs, own = json.loads(there.identity), json.loads(identity)
    if theirs == own:  # this run's copy
        return path, there
    kinds = [one["training"]["optimiser"] for one in (theirs, own)]
    if theirs["tokenizer_fingerprint"] != own["tokenizer_fingerprint"]:
        raise ConfigError(f"--from {config.from_run}: its tokenizer is another; repeat its --model")
    if "lora" in own and theirs.get("model_fingerprint") != own["model_fingerprint"]:
        problem = f"--from {config.from_run}: it has no adapters like these on this start"
        fix = "repeat its --model and --lora, or name its model/ with --model"
        raise ConfigError(f"{problem}; {fix}")
    if "muon" in kinds and kinds[0] != kinds[1]:
        problem = f"it has the moments of {kinds[0]}, and not of {kinds[1]}"
        raise ConfigError(f"--from {config.from_run}: {problem}; give --optimiser {kinds[0]}")
    both = ({**one["training"], **one} for one in (theirs, own))
    found = differences(*(json.dumps({name: one.get(name) for name in DATA}) for one in both))
    anew = f"; the data starts anew, for {found[0]}" if found else ""
    log.info("beginning at step %d of '%s'%s", there.step, path.parents[1], anew)
    first = Position(step=there.step, identity=identity)
    return path, first if found else replace(there, identity=identity)


def left_steps(run: TextRun, path: Path) -> tuple[int, int]:
    """Return what `head_steps` does, of a branch whose run may have another length."""
    config, first, new = run.config, run.first, run.loaded.new_parameters
    alone, steps = head_steps(run)
    total = planned_steps(run.train, config.training, first)[1]
    if total <= first.step:
        problem = f"--from {config.from_run}: the run ends at step {total}"
        raise ConfigError(f"{problem}, so nothing is left to train; raise --max-steps or --epochs")
    with safe_open(path / OPTIMISER, "pt") as moments:  # of new parameters alone, or of others
        past = any(not name.endswith(tuple(new)) for name in moments.keys())  # noqa: SIM118
    # A longer run does not freeze its encoder again.
    return min(alone, first.step) if past else alone, steps


def take_over(path: Path, first: Position, loop: TrainingLoop) -> None:
    """Copy the checkpoint into this run, so that the other may move, or remove it."""

    def write() -> None:
        files = {name: load_file(path / name) for name in (MODEL, OPTIMISER, EXTRA)}
        loop.checkpoints.write(Snapshot(position=first, files=files))

    if path.parent != loop.checkpoints.folder:
        loop.processes.on_main(write)


def _checkpoint(config: TextRunConfig) -> Path:
    """Return the sound checkpoint that a run begins at: its own copy, or the other run's."""
    folder, step = origin(config.from_run)
    if config.output is not None and step is not None:
        own = Checkpoints(config.output / CHECKPOINTS).path_of(step)
        if own.is_dir() and find_damage(own) is None:
            return own
    open_origin(config.from_run or "")
    kept = kept_checkpoints(folder)
    path = Checkpoints(folder / CHECKPOINTS).newest_sound() if step is None else kept.get(step)
    if path is None:
        which = "sound checkpoint" if step is None else f"checkpoint of step {step}"
        has = f"steps {', '.join(map(str, kept))}" if kept else "none"
        raise ConfigError(f"'{folder}' has kept no {which}: it has {has}; --keep-at keeps more")
    if (damage := find_damage(path)) is not None:
        raise ConfigError(f"the checkpoint '{path}' is damaged ({damage}); choose another step")
    return path


def train_phases(
    config: TextRunConfig, default: Path, run: Callable[[TextRunConfig], TextResult]
) -> TextResult:
    """Train the phases in `phase-1`, `phase-2`, ... of the run folder; returns the last's result.

    Finished phases are found finished, so that a resumed run goes on in the one that was stopped.
    """
    planned, processes = phases_of(config), join_processes()
    both = zip(config.phases, planned, strict=True)  # with paths that hold from any folder
    phases = tuple({**given, "corpus": [*one.corpus]} for given, one in both)
    result: TextResult | None = None
    with held_run_folder(processes, config, default) as held:
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
            problem = f"{where} ends at step {last} (until: {until}), and begins at step {step}"
            raise ConfigError(f"{problem}; phases go forward")
        tokens += (last - step) * (phase.training.batch_tokens or 0)
        step, more = last, {"max_steps": last, "epochs": last}  # an epoch has at least one step
        found.append(with_settings(phase, more).anchored())
    return found
