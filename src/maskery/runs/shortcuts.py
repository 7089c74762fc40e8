"""One call each for searching, explaining and filling, with models named or open."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

    from maskery.evaluation.image_text.explain import Explanation, Target
    from maskery.evaluation.image_text.opening import OpenImageText
    from maskery.evaluation.retrieval.search import Hit
    from maskery.evaluation.text.fill import Filler
    from maskery.evaluation.text.opening import OpenModel


def search(
    model: str | Path | OpenImageText,
    folder: str | Path,
    query: str,
    *,
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
        query: The description.
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
    return search_all(opened, folder, query, top=top, rerank=rerank, cache_dir=cache_dir)[0]


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

    opened = open_image_text_model(model)
    return explain_opened(opened, image, caption, target=target, layer=layer)


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
    from maskery.core.errors import ConfigError
    from maskery.evaluation.image_text.image_fill import ImageFiller
    from maskery.evaluation.image_text.opening import OpenImageText, is_image_text
    from maskery.evaluation.text.fill import Filler
    from maskery.evaluation.text.opening import OpenModel

    named = not isinstance(model, OpenModel | OpenImageText)
    if isinstance(model, OpenImageText) or (named and is_image_text(str(model))):
        return ImageFiller(open_image_text_model(model), image)  # type: ignore[arg-type]
    if image is not None:
        name = getattr(model, "name", model)
        raise ConfigError(
            f"the picture {image!r:.100} cannot be used: '{name}' reads text alone; leave it out, "
            f"or name a model of maskery train pairs"
        )
    return Filler.of(model)


def open_image_text_model(model: str | Path | OpenImageText) -> OpenImageText:
    """Open an image-text model with all that is known of it; an open one is returned as it is."""
    from maskery.evaluation.image_text.opening import OpenImageText
    from maskery.runs.person_search.evaluate import open_for_retrieval

    return model if isinstance(model, OpenImageText) else open_for_retrieval(str(model))
