"""The frame around any training run: its folder, its files, its identity."""

import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import SafetensorError

from maskery.core.errors import CheckpointError, harmless, reason_of
from maskery.core.processes import join_processes
from maskery.core.registry import plugin_identity
from maskery.core.system import replace_folder
from maskery.runs.frame import run_folder
from maskery.runs.frame.config_file import CONFIG, save_config
from maskery.training.checkpoint import Checkpoints, find_damage
from maskery.training.config import BaseTrainingConfig
from maskery.training.snapshot import require_same_run, stored_identity

if TYPE_CHECKING:
    from maskery.training.loop import Summary

CHECKPOINTS = "checkpoints"
UNWRITTEN = (OSError, RuntimeError, SafetensorError)


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The result of a run; a kind of run adds its figures."""

    folder: Path  # The run folder
    summary: "Summary"  # Steps, tokens and time

    def to_json(self) -> dict[str, Any]:
        """Return the content of `evaluation.json` and of `--json`."""
        plain = asdict(self)
        named = {"run": str(plain.pop("folder")), "model": str(self.folder / run_folder.MODEL)}
        training = plain.pop("summary")
        # The figures of an `evaluation` stand beside the others.
        return {**named, **plain.pop("evaluation", {}), **plain, "training": training}


RunT = TypeVar("RunT")
ResultT = TypeVar("ResultT", bound=RunResult)


def run_in_folder(
    config: Any,
    default: Path,
    *,
    prepare: Callable[[Path], RunT],
    train: Callable[[RunT, Path], ResultT],
) -> ResultT:
    """Open the run folder, prepare the run, train it there, and write its figures.

    The config has `output` and `resume`, the prepared run its `identity`. A run that fails while it
    is prepared leaves nothing behind. With several processes the main one chooses the folder,
    `default` where the config names none, keeps other runs out of it and writes; all of them
    prepare and train.
    """
    processes = join_processes()
    with run_folder.held_run_folder(processes, config, default) as held:
        folder = held.path

        def prepared() -> tuple[Any, bool]:
            run: Any = prepare(folder)
            return run, processes.is_main and _may_save_config(folder, run.identity)

        try:
            # The others find what the main process leaves on disk: tokenizer, tokens.
            run, writes = processes.main_first(prepared)
            if writes:
                save_config(folder, replace(config, output=folder))
        except BaseException:
            held.discard()
            raise
        result = train(run, folder)
        trained = result.summary.resumed_from < result.summary.steps
        if processes.is_main and (trained or not _is_json(folder / run_folder.EVALUATION)):
            # Of a run that was finished before, the figures are kept, its time above all.
            run_folder.write_json(folder / run_folder.EVALUATION, result.to_json())
    return result


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _may_save_config(folder: Path, identity: str) -> bool:
    """Return True if `config.yaml` may be written; a checkpoint of another run is an error."""
    checkpoints = Checkpoints(folder / CHECKPOINTS).complete()
    for path in reversed(checkpoints):
        stored = stored_identity(path)
        if stored == identity:
            return True
        if stored is not None and find_damage(path) is None:  # a damaged one may say anything
            require_same_run(path, stored, identity)
    # Restoring will say what is wrong with checkpoints that cannot be read.
    return not checkpoints or not (folder / CONFIG).exists()


def save_model_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Replace a model folder whole, or not at all; `write` fills the folder that it is given."""
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        write(partial)
        what_now = "it is replaced by what the last checkpoint holds"
        run_folder.warn_of_another_model(folder.parent, what_now)
        run_folder.write_json(folder.parent / run_folder.SUMS, run_folder.model_sums(partial))
        replace_folder(partial, folder)
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        # Tokenizers tell of a full disk by a bare Exception.
        if not isinstance(error, UNWRITTEN) and type(error) is not Exception:
            raise
        problem = f"the model could not be written to '{folder}' ({reason_of(error)})"
        fix = "free some space and repeat the command with --resume auto"
        kept = "the training itself is in the last checkpoint"
        raise CheckpointError(f"{problem}; {fix}: {kept}") from error


def identity(training: BaseTrainingConfig, described: Mapping[str, Any]) -> str:
    """Return everything that decides the course of a run, but not how it is computed, as JSON.

    Training's bookkeeping is left out. The names of `described` are what a refusal says; its
    dataclasses become their settings, and a plug-in its name with a hash of its file.
    """
    named = run_folder.each_text(described, plugin_identity)
    return json.dumps({**named, "training": training.course()}, sort_keys=True)


def model_card(
    config: Any,
    start: str,  # the name of the model that the run started from
    document: Mapping[str, Any],  # its `evaluation.json`
    *,
    title: str,
    trained: str,  # on what, and how
    example: str,  # a block of code
    tags: Iterable[str] = (),
    **metadata: Any,  # of `huggingface_hub.ModelCardData`
) -> str:
    """Return the card of a run's model, in Markdown, with the figures of its report."""
    from huggingface_hub import ModelCard, ModelCardData

    from maskery.evaluation.tables import run_tables  # no run needs it before its end

    tags = ["maskery", "masked-language-modelling", *tags]
    data = ModelCardData(library_name="transformers", tags=tags, **metadata)
    begun = f"{public_name(start)}{config.new_pieces(start)}"
    parts = [f"# {title}", f"Starting from {begun}, trained on {trained}"]
    for shown in run_tables(document):
        notes = "\n".join(f"- {card_words(note)}" for note in shown.notes)
        parts += [f"## {shown.title}", card_table(*shown.lines()), notes]
    if "verdict" in document:
        parts.append(f"Verdict: {card_words(document['verdict'])}")
    text = "\n\n".join([*parts, f"```{example}\n```\n"])
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}"))


def card_table(*rows: Sequence[str]) -> str:
    """Return a table in Markdown, for a model card; the first row is its head."""
    lines = (rows[0], ["---"] * len(rows[0]), *rows[1:])
    return "\n".join(f"| {' | '.join(map(card_words, row))} |" for row in lines)


def card_words(text: str) -> str:
    """Return a text for a model card, in one line that is no Markdown and no HTML."""
    return re.sub(r"[\\`|<]|(?<=\])\(", r"\\\g<0>", harmless(" ".join(text.split())))


def public_name(name: str) -> str:
    """Return a model or corpus for a model card, without the folder, which nobody else knows."""
    name = Path(name).name if Path(name).is_absolute() else name
    # In code there is no markup but the end of the code.
    return card_words(name) if "`" in name else f"`{harmless(' '.join(name.split()))}`"
