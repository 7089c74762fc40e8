"""What people ask a model about pictures, as the model was trained to read captions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maskery.core.batch import TokenBatch
from maskery.core.errors import DataError
from maskery.data.person_search.config import clean_caption
from maskery.evaluation.image_text.opening import OpenImageText


def prepared(opened: OpenImageText, text: str, *, what: str = "query") -> str:
    """A text as the captions were prepared that the model was trained on.

    Training cuts captions that are too long; what is typed is refused instead of read in part.

    Args:
        opened: The model.
        text: As typed.
        what: What it is called in messages.

    Raises:
        DataError: It is empty, no Unicode, or has too many words.
    """
    if not text.strip():
        raise DataError(f'the {what} is empty; describe a picture, as "a red coat"')
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"the {what} {text!r} has bytes that are not UTF-8; type it anew, or set the terminal "
            f"to UTF-8"
        ) from error
    retrieval = opened.retrieval
    if retrieval.clean_captions:
        words = len(clean_caption(text, max_words=len(text)).split())
        if words > retrieval.max_words:
            raise DataError(
                f"the {what} has {words} words, and the model reads {retrieval.max_words}; "
                f"shorten it"
            )
    return retrieval.prepare(text)


def require_readable(
    opened: OpenImageText, ids: Sequence[int], text: str, *, what: str = "query"
) -> None:
    """Refuse tokens that the model cannot read, or that say nothing to it.

    Raises:
        DataError: There are too many, or all of them are unknown.
    """
    if len(ids) > opened.max_tokens:
        raise DataError(
            f"the {what} has {len(ids)} tokens, and the model reads {opened.max_tokens}; shorten it"
        )
    if not set(ids) - set(opened.tokenizer.all_special_ids):
        raise DataError(
            f"the {what} {text!r} has no word that the model knows; use words of its captions"
        )


def encode_query(opened: OpenImageText, text: str) -> TokenBatch:
    """A description as the tokens of a model; asks nothing of a gallery.

    Raises:
        DataError: It is empty, unknown, too long or no Unicode.
    """
    ready = prepared(opened, text)
    ids: list[int] = opened.tokenizer(ready, truncation=False, verbose=False)["input_ids"]
    require_readable(opened, ids, text)
    return TokenBatch(
        input_ids=np.array(ids, np.int64),
        boundaries=np.array([0, len(ids)], np.int64),
        example_ids=np.zeros(1, np.uint64),
        starts=np.zeros(1, np.int64),
        word_starts=np.ones(len(ids), np.bool_),
    )
