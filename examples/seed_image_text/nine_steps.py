"""The image-text seed document, step by step, on a drawn picture: run me.

    python examples/seed_image_text/nine_steps.py

The document lists nine steps and asks what image1, image2, text1 and text2 are. They are two
augmented views of one photograph (the trained model sees image1, its momentum twin image2), the
caption that was written for it (text1), and the caption that other losses read (text2: the same, or
another one of the same person). `docs/image_text_mlm.md` says more. Names are the document's.

Everything is made here: four pictures of one colour each, and captions that name it. A tiny model
learns them in half a minute on one core, and fills in a colour that only the picture tells.
"""

import dataclasses

import torch
import torch.nn.functional as F

from maskery.core.batch import Vocabulary
from maskery.masking.mask import mask
from maskery.models.image_text.build import build_from_scratch
from maskery.models.image_text.model import ImageTextModel
from maskery.models.image_text.sizes import ImageTextSizes
from maskery.models.momentum import MomentumTwin
from maskery.objectives.mlm import soft_mlm_loss_sum
from maskery.objectives.mrtd import mrtd_loss_sum, mrtd_mask_modeling

COLOURS = {"red": (1.0, 0, 0), "green": (0, 1.0, 0), "blue": (0, 0, 1.0), "white": (1.0, 1.0, 1.0)}
WORDS = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "a", "picture", "coat", "that", "is", *COLOURS]
IDS = {word: i for i, word in enumerate(WORDS)}
vocabulary = Vocabulary(size=len(WORDS), mask_token_id=IDS["[MASK]"], special_ids=(0, 1, 2, 3))


def tokenize(colour: str, form: int) -> list[int]:
    """One of two captions, which differ in length."""
    forms = [f"[CLS] a {colour} coat [SEP] [PAD] [PAD]", f"[CLS] a coat that is {colour} [SEP]"]
    return [IDS[word] for word in forms[form].split()]


def view(colours: list[str], generator: torch.Generator) -> torch.Tensor:
    """An augmented view: the coloured pictures under noise, (B, 3, 16, 16)."""
    plain = torch.tensor([COLOURS[c] for c in colours])[:, :, None, None].expand(-1, -1, 16, 16)
    return plain + 0.3 * torch.randn(plain.shape, generator=generator)


@dataclasses.dataclass(frozen=True)
class Text:
    """A tokenised caption, as tokenizers return it."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor


def training_step(
    model: ImageTextModel,
    twin: MomentumTwin[ImageTextModel],
    image1: torch.Tensor,
    image2: torch.Tensor,
    text1: Text,
    *,
    epoch: int,
    alpha: float = 0.4,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Steps 2 to 9; returns loss_mlm and loss_mrtd."""
    text_encoder, text_encoder_m = model.text_encoder, twin.model.text_encoder
    image_embeds = model.project_images(model.encode_image(image1))
    with torch.no_grad():
        image_embeds_m = twin.model.project_images(twin.model.encode_image(image2))

    # 2. Mask. Labels are the original ids where something was masked, -100 elsewhere.
    labels = text1.input_ids
    input_ids, labels = mask(
        text1.input_ids,
        len(WORDS),
        targets=labels,
        probability_matrix=0.3,
        vocabulary=vocabulary,
        epoch=epoch,
    )
    masked = labels != -100

    # 3. The attention mask is the caption's: every real token, none of the padding.
    attention_mask = text1.attention_mask

    # 4. The momentum model's prediction for the masked words: soft labels.
    with torch.no_grad():
        hidden_m = text_encoder_m(input_ids, attention_mask, image_embeds_m)
        logits_m = text_encoder_m.mlm_logits(hidden_m[masked])
        prediction = F.softmax(logits_m, dim=-1)

    # 5. The MLM loss, against the words themselves and against the soft labels.
    hidden = text_encoder(input_ids, attention_mask, image_embeds)
    logits = text_encoder.mlm_logits(hidden[masked])
    loss_mlm = soft_mlm_loss_sum(logits, labels[masked], prediction, alpha) / masked.sum()

    # 6. The momentum model reads the caption masked anew; its prediction is the generator.
    mrtd_input_ids, mrtd_targets = mask(
        text1.input_ids, len(WORDS), probability_matrix=0.3, vocabulary=vocabulary,
        epoch=epoch, seed=1,
    )  # fmt: skip
    with torch.no_grad():
        hidden_m = text_encoder_m(mrtd_input_ids, attention_mask, image_embeds_m)
        positions = (mrtd_targets != -100).flatten().nonzero().squeeze(-1)
        mrtd_logits_m = text_encoder_m.mlm_logits(hidden_m.flatten(0, 1)[positions])
        weights = F.softmax(mrtd_logits_m, dim=-1)

    # 7. Replace the masked words by words sampled from it; label what is not the original.
    mrtd_input_ids, mrtd_labels = mrtd_mask_modeling(
        mrtd_input_ids, text1.input_ids, attention_mask, weights,
        positions=positions, uniforms=torch.rand(len(positions)), special_ids=(0, 1, 2, 3),
    )  # fmt: skip

    # 8. The trained model reads the caption with replacements.
    output_mrtd = text_encoder(mrtd_input_ids, attention_mask, image_embeds)

    # 9. The MRTD loss: which words were replaced?
    mrtd_output = model.mrtd_head(output_mrtd.flatten(0, 1))
    judged = (mrtd_labels != -100).sum()
    loss_mrtd = mrtd_loss_sum(mrtd_output, mrtd_labels.flatten()) / judged
    return loss_mlm, loss_mrtd


def main() -> None:
    """Train, then ask for a colour that only the picture tells."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)

    # 1. The online model and its momentum twin.
    sizes = ImageTextSizes(image_size=(16, 16), patch_size=8, width=32, num_heads=2, max_length=8)
    model = build_from_scratch(sizes, vocabulary_size=len(WORDS))
    twin = MomentumTwin(model, momentum=0.95)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    colours = list(COLOURS) * 4
    for step in range(200):
        forms = torch.randint(0, 2, (len(colours),), generator=generator).tolist()
        ids = torch.tensor([tokenize(c, f) for c, f in zip(colours, forms, strict=True)])
        text1 = Text(ids, ids != IDS["[PAD]"])
        twin.update()
        image1, image2 = view(colours, generator), view(colours, generator)
        loss_mlm, loss_mrtd = training_step(model, twin, image1, image2, text1, epoch=step)
        (loss_mlm + 0.5 * loss_mrtd).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 40 == 0 or step == 199:
            print(f"step {step:3}: loss_mlm {loss_mlm:.3f}, loss_mrtd {loss_mrtd:.3f}")

    question = torch.tensor([tokenize("[MASK]", 0)] * len(COLOURS))
    model.eval()
    with torch.no_grad():
        logits = model(view(list(COLOURS), generator), question, question != 0).logits[:, 2]
    for colour, answer in zip(COLOURS, logits.argmax(dim=-1).tolist(), strict=True):
        print(f"a picture of {colour}: 'a [MASK] coat' is 'a {WORDS[answer]} coat'")


if __name__ == "__main__":
    main()
