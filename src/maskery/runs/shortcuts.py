"""One call each for training, searching, explaining and filling: `maskery.train` and so on."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskery.core.errors import ConfigError, MaskeryError
from maskery.core.system import is_main_process
from maskery.runs.frame import config_file
from maskery.runs.frame.config_file import KINDS, OpenRun, given_name, open_run
from maskery.runs.frame.run_folder import repeated_folder

if TYPE_CHECKING:
    from PIL.Image import Image

    from maskery.evaluation.image_text.explain import Explanation, Target
    from maskery.evaluation.image_text.opening import OpenImageText
    from maskery.evaluation.retrieval.search import Hit
    from maskery.evaluation.text.fill import Filler
    from maskery.evaluation.text.opening import OpenModel

log = logging.getLogger(__name__)


def train(
    data: Any,
    model: Any = None,
    *,
    tokenizer: Any = None,
    eval_data: Any = None,
    policy: Any = None,
    objective: str | Callable[[Any], Any] | None = None,
    callbacks: Sequence[Any] = (),
    output: str | Path | None = None,
    progress: bool = True,
    report: bool = True,
    **settings: Any,
) -> Any:
    """Train a run: `train("notes/*.txt", "minilm", epochs=3)`.

    Args:
        data: The corpus: a file, folder, glob or hub id; a sequence of `Path`s; or the texts
            themselves, as a dataset of the `datasets` library or an iterable of strings that can be
            read several times. Or a whole configuration, of any kind: a `TextRunConfig`,
            `PairsRunConfig` or `PersonSearchRunConfig`, or the path of a run's `config.yaml`, which
            is repeated in the next free folder.
        model: A name as `--model` takes it, or a model object with its `tokenizer`; see
            `maskery.models.own_model`. Default: minilm, or the configuration's.
        tokenizer: A Hugging Face tokenizer, for a model object; or, as `--tokenizer`, the kind that
            `scratch:...` learns.
        eval_data: Held-out text, like `data`. Default: a share of the corpus. A dictionary of paths
            by name is of other texts that are measured beside it.
        policy: A masking policy by name, or an object.
        objective: A training objective by name, or a callable that makes a `Task` from `TextParts`.
        callbacks: Called while the run trains; see `Callback`.
        output: The run folder. Default: runs/DATA-MODEL, numbered if taken.
        report: Draw `report.html`, as `maskery train` does, if the `report` extra is there. Of
            texts that are passed themselves it shows no fills: they are not read again.
        **settings: Any flag of `maskery train`, by its name with underscores.

    Returns:
        The result of that kind of run, with the run folder as `folder`.

    Raises:
        ConfigError: A setting is unknown or does not fit.
    """
    objects: dict[str, Any] = {"progress": progress, "callbacks": callbacks or None}
    named: dict[str, Any] = {"policy": policy, "output": output}
    if isinstance(model, str | Path):
        named["model"] = str(model)
    elif model is not None:
        named["model"], objects["model"] = given_name(type(model)), model
    for name, choice in (("objective", objective), ("tokenizer", tokenizer)):
        (named if isinstance(choice, str) else objects)[name] = choice
    config: Any = data
    if isinstance(data, str | Path) and Path(data).suffix in (".yaml", ".yml"):
        saved = config_file.read_config(data)
        config = replace(saved, output=None)
        objects["beside"] = None if saved.output is None else repeated_folder(saved.output)
    elif not is_dataclass(data) or getattr(data, "kind", None) not in KINDS:
        named["corpus"], objects["texts"] = sources_or_texts(data)
        config = KINDS["text"].load("config")(corpus=named["corpus"])
    if isinstance(eval_data, Mapping):
        if not all(isinstance(path, str | os.PathLike) for path in eval_data.values()):
            raise ConfigError("eval_data by name takes paths; pass one text itself, or name files")
        named["eval_data"] = tuple(f"{name}={os.fspath(path)}" for name, path in eval_data.items())
    elif eval_data is not None:
        named["eval_data"], objects["eval_texts"] = sources_or_texts(eval_data)
    given = {name: value for name, value in named.items() if value is not None}
    objects = {name: value for name, value in objects.items() if value is not None}
    train_run = KINDS[config.kind].load("train")
    result = train_run(config_file.with_settings(config, {**settings, **given}), **objects)
    if report and is_main_process():
        finish_report(result.folder)
    return result


def finish_report(folder: Path) -> None:
    """Draw the report at the end of a run; what cannot be drawn is left out with a warning."""
    from maskery.report.page import write_report

    log.info("drawing the report")
    save_samples(open_run(folder))
    try:
        log.info("the report is %s", write_report(folder))
    except MaskeryError as error:
        log.warning("no report is drawn: %s; then: maskery report %s", error, folder)


def save_samples(run: OpenRun) -> None:
    """Save the samples of a run's report; where they cannot be made, one warning says why."""
    try:
        run.save_samples()
    except MaskeryError as error:  # such as a corpus that is gone
        log.warning("the report has no samples: %s", error)


def sources_or_texts(data: Any) -> tuple[tuple[str, ...], Any]:
    """Return the sources that a configuration names, and texts that are passed themselves."""
    if isinstance(data, str | Path):
        return (str(data),), None
    if isinstance(data, list | tuple) and data and all(isinstance(one, Path) for one in data):
        return tuple(str(one) for one in data), None
    if not isinstance(data, Iterable):
        kind = type(data).__name__
        raise ConfigError(f"there is no text in {kind}: pass a path, a dataset, or strings")
    return ("<texts>",), data


def search(
    model: str | Path | OpenImageText,
    folder: str | Path,
    query: str | None = None,
    *,
    like: str | Path | bytes | None = None,
    top: int = 10,
    rerank: int | None = None,
    cache_dir: str | Path | None = None,
) -> list[Hit]:
    """Find pictures by describing them: `search("runs/people", "photos", "a woman in a red coat")`.

    The folder is indexed first, and the index is kept: later searches encode only new and changed
    pictures. For many queries over one folder, keep a `Searcher` with `open_gallery`.

    Args:
        model: A run folder or a model folder of an image-text model, or an open model.
        folder: The pictures, with folders in it.
        query: The description; None for `like` alone.
        like: A picture, as a file or the bytes of one: found are those most like it, and with a
            description like both.
        top: Pictures to return, best first, with paths relative to the folder.
        rerank: The most similar pictures that the matching head looks at again with the words; 0:
            none. Default: the model's own setting.
        cache_dir: Where the index is kept. Default: `$MASKERY_CACHE`, or ~/.cache/maskery.

    Raises:
        DataError: The folder has no readable picture, or the query no word that the model knows.
        ModelError: The model cannot be loaded, or cannot compare words and pictures.
    """
    from maskery.evaluation.retrieval.search import search as search_all

    opened = open_image_text_model(model)
    texts = () if query is None else query
    hits = search_all(opened, folder, texts, like=like, top=top, rerank=rerank, cache_dir=cache_dir)
    return hits[0]


def explain(
    model: str | Path | OpenImageText,
    image: str | Path | bytes | Image,
    caption: str,
    *,
    target: Target | None = None,
    layer: int | None = None,
) -> Explanation:
    """Show where a model looks for each word of a caption, as heat over the picture.

    Args:
        model: A run folder or a model folder of an image-text model, or an open model.
        image: A file, the bytes of one, or a picture in RGB.
        caption: The words, as typed.
        target: `matching` explains the match score of the whole caption, `words` the prediction of
            each masked word. Default: matching if its head was trained, else words.
        layer: A fusion layer, from 0. Default: the middle one.

    Raises:
        ConfigError: There is no such layer, or it says nothing about the target.
        DataError: The picture cannot be read, or the caption is empty, unknown or too long.
        ModelError: The model cannot be loaded, or lacks what the target needs.
    """
    from maskery.evaluation.image_text.explain import explain as explain_opened

    return explain_opened(open_image_text_model(model), image, caption, target=target, layer=layer)


def open_filler(
    model: str | Path | OpenModel | OpenImageText, image: str | Path | bytes | None = None
) -> Filler:
    """Open a model to fill masks: `open_filler("runs/notes").fill("A [MASK] idea.")`.

    Args:
        model: A run folder, a model folder, a hub name, `minilm`, or an open model.
        image: The picture to look at, a file or its bytes, for an image-text model.

    Raises:
        ConfigError: A picture is given to a model that reads text alone.
        DataError: The picture cannot be read.
        ModelError: The model cannot be loaded, or has no trained head.
    """
    from maskery.evaluation.image_text.image_fill import ImageFiller
    from maskery.evaluation.image_text.opening import OpenImageText, is_image_text
    from maskery.evaluation.text.fill import Filler
    from maskery.evaluation.text.opening import OpenModel

    named = not isinstance(model, OpenModel | OpenImageText)
    if isinstance(model, OpenImageText) or (named and is_image_text(str(model))):
        return ImageFiller(open_image_text_model(model), image)  # type: ignore[arg-type]
    if image is not None:
        name = getattr(model, "name", model)
        problem = f"the picture '{image!s:.100}' cannot be used: '{name}' reads text alone"
        raise ConfigError(f"{problem}; leave it out, or name a model of maskery train pairs")
    return Filler.of(model)


def open_image_text_model(model: str | Path | OpenImageText) -> OpenImageText:
    """Open an image-text model with all that is known of it; an open one is returned as it is."""
    from maskery.evaluation.image_text.opening import OpenImageText
    from maskery.runs.person_search.evaluate import open_for_retrieval

    return model if isinstance(model, OpenImageText) else open_for_retrieval(str(model))
