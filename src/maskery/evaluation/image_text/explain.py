"""Heat maps of the places that a model looks at for each word: gradients of cross-attention.

Grad-CAM (Selvaraju et al., ICCV 2017) as ALBEF shows it (Li et al., NeurIPS 2021, section 6): with
A the map of a fusion layer and y a prediction, a word's heat over the image tokens is the mean over
heads of ReLU(dy/dA * A), in its own rows of A.

y is the logit of a match or, where that head was never trained, the log-probability of each word
in its place once masked. Of a single fusion layer matching reads the class token alone, whose row
is the heat of the caption as a whole.

Shapes: R rows of text, L tokens, H heads, N image tokens, G x F the grid of patches, K words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import torch

from maskery.core.errors import ConfigError, ModelError
from maskery.data.images.views import view
from maskery.evaluation.image_text.opening import OpenImageText, load_picture
from maskery.evaluation.text.words_of_text import Word
from maskery.models.image_text.model import ImageTextModel, pair
from maskery.models.image_text.text_encoder import ImageKeys

if TYPE_CHECKING:
    from PIL.Image import Image

Target = Literal["matching", "words"]


@dataclass(frozen=True, kw_only=True)
class WordHeat:
    """Heat map of a word."""

    word: str  # as written; the whole caption where `Explanation.whole` says so
    heat: npt.NDArray[np.float32]  # (G, F) float32, 0 or more; rows from top to bottom
    probability: float | None  # of the word once masked; None where matching is explained


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """A caption's words over a picture."""

    caption: str  # as given
    words: tuple[WordHeat, ...]  # in order
    whole: bool  # the words are explained as one: matching, by a single fusion layer
    target: Target  # the prediction that is explained
    layer: int  # of the fusion layers, counted from 0
    match: float | None  # probability that both belong together; None without a matching head


def explain(
    opened: OpenImageText,
    image: "str | Path | bytes | Image",
    caption: str,
    *,
    target: Target | None = None,
    layer: int | None = None,
) -> Explanation:
    """Compute a heat map over a picture for each word of a caption; see `maskery.explain`."""
    if isinstance(image, str | Path | bytes):
        image = load_picture(image)
    network = opened.model
    target = _checked_target(opened, target)
    chosen = _checked_layer(opened, target, layer)
    whole = target == "matching" and len(network.text_encoder.fusion_layers) == 1
    ids, words = opened.words_of(caption)
    pixels = view(image, opened.view)[None].to(network.device)
    with torch.no_grad():
        tokens = network.encode_image(pixels)
        keys = network.project_images(tokens)
        match = None
        if opened.trained("itm"):
            fused = network.text_encoder(ids[None].to(network.device), None, keys)
            match = float(network.itm_head(fused[:, 0]).float().softmax(dim=-1)[0, 1])
    if target == "matching":
        states, attention = fuse_with_map(network, ids[None], keys, chosen)
        heat = grad_cam(network.itm_head(states[:, 0])[0, 1], attention)[0]  # (L, N)
        if whole:
            words = [Word(text=caption, start=0, end=len(caption), first=0, last=1)]
        rows = torch.stack([heat[word.first : word.last].mean(dim=0) for word in words])
        chances: Sequence[float | None] = [None] * len(words)
    else:
        rows, chances = word_heat(opened, ids, keys, chosen, words)
    # Patches from top to bottom and from left to right; they are the last of the image tokens.
    height, width = pair(network.config.vision_config.patch_size)
    grid = pixels.shape[-2] // height, pixels.shape[-1] // width
    maps = rows[:, -grid[0] * grid[1] :].unflatten(1, grid).float().cpu().numpy()
    each = zip(words, maps, chances, strict=True)
    heats = tuple(WordHeat(word=w.text, heat=heat, probability=chance) for w, heat, chance in each)
    return Explanation(
        caption=caption, words=heats, whole=whole, target=target, layer=chosen, match=match
    )


def word_heat(
    opened: OpenImageText,
    ids: torch.Tensor,
    keys: Sequence[ImageKeys],
    layer: int,
    words: Sequence[Word],
) -> tuple[torch.Tensor, list[float]]:
    """Return the heat (K, N) of every word, masked by itself, and its probability."""
    places = torch.cat([torch.arange(word.first, word.last) for word in words])
    rows = torch.tensor([n for n, word in enumerate(words) for _ in range(word.first, word.last)])
    masked = ids.repeat(len(words), 1)
    masked[rows, places] = int(opened.tokenizer.mask_token_id)
    fused, attention = fuse_with_map(opened.model, masked, keys, layer)
    logits = opened.model.text_encoder.mlm_logits(fused[rows, places]).float()
    hidden = ids[places].to(logits.device)
    logs = logits.log_softmax(dim=-1).gather(1, hidden[:, None])[:, 0]
    heat = grad_cam(logs.sum(), attention)[rows, places]
    # A word of several pieces has the mean of their heat, and the product of their probabilities.
    owners = rows.to(heat.device)
    summed = heat.new_zeros(len(words), heat.shape[1]).index_add(0, owners, heat)
    counts = torch.bincount(owners, minlength=len(words))
    chances = logs.new_zeros(len(words)).index_add(0, owners, logs.detach()).exp()
    return summed / counts[:, None], chances.tolist()


def fuse_with_map(
    model: ImageTextModel,  # in evaluation mode
    ids: torch.Tensor,  # (R, L) int64, all real
    keys: Sequence[ImageKeys],  # of one image
    layer: int,  # of the fusion layers, counted from 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fuse texts with an image: (R, L, D), and a layer's map (R, H, L, N) that has a gradient."""
    with torch.no_grad():
        hidden = model.text_encoder.encode_text(ids.to(model.device), None)
    with torch.enable_grad():
        looks = zip(model.text_encoder.fusion_layers, keys, strict=True)
        for number, (block, image) in enumerate(looks):
            if number == layer:
                before = block.attention(hidden, None).detach()
                core = block.crossattention.self
                with torch.no_grad():
                    query = core.split_heads(core.query(before))
                    scores = query @ image.keys.transpose(-1, -2) / query.shape[-1] ** 0.5
                    attention = scores.softmax(dim=-1)
                attention.requires_grad_()  # a leaf: the gradient that is asked for stops at it
                context = (attention @ image.values).transpose(1, 2).flatten(2)
                seen = block.crossattention.output(context, before)
                hidden = block.output(block.intermediate(seen), seen)
            else:
                hidden = block(hidden, None, image)
    return hidden, attention


def grad_cam(output: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
    """Return the mean over heads of ReLU(gradient * map): (R, L, N), 0 or more."""
    (gradient,) = torch.autograd.grad(output, attention)
    return (gradient * attention.detach()).relu().mean(dim=1)


def _checked_target(opened: OpenImageText, target: Target | None) -> Target:
    """Return the target; a head that was never trained explains nothing."""
    matches, fills = opened.trained("itm"), opened.trained("mlm")
    fuses, towers = bool(opened.model.text_encoder.fusion_layers), opened.model.config.has_towers
    problems = {
        "has no fusion layers: its words never look at the picture; use another model": not fuses,
        "looks at the picture before its fusion layers: use a model with a BERT": towers,
        "learnt neither to match nor to fill words, so it says nothing that could be explained; "
        "train with --itm-weight or --mlm-weight above 0": not matches and not fills,
        "has a matching head that was never trained, so it says nothing; explain the words "
        "instead: --target words": target == "matching" and not matches,
        "never learnt to fill words, so what it says of each is noise; explain the match instead: "
        "--target matching, or train with --mlm-weight above 0": target == "words" and not fills,
    }
    for problem, applies in problems.items():
        if applies:
            raise ModelError(f"'{opened.name}' {problem}")
    return target or ("matching" if matches else "words")


def _checked_layer(opened: OpenImageText, target: Target, layer: int | None) -> int:
    count = len(opened.model.text_encoder.fusion_layers)
    chosen = (count - 1) // 2 if layer is None else layer
    if not 0 <= chosen < count:
        layers = f"{count} fusion layers, counted from 0 to {count - 1}"
        raise ConfigError(f"layer is {chosen}: the model has {layers}")
    if target == "matching" and 0 < chosen == count - 1:
        problem = f"layer {chosen} is the last: matching reads the class token alone after it"
        fix = "choose a lower layer, or --target words"
        raise ConfigError(f"{problem}, so the other words have no gradient there; {fix}")
    return chosen
