"""The seed document's "deep implementation": a hand-written training loop.

    python examples/seed_text/hand_written_loop.py
    python examples/seed_text/hand_written_loop.py --corpus clean.txt --epochs 2 --steps 1000

What the document did otherwise: it padded every line to 512 tokens (here nothing is padded), took
the loss over every token, padding included (here over the masked ones), masked once before training
(here afresh in each epoch), and used `transformers.AdamW`, which is gone (`torch.optim.AdamW`).
"""

import argparse
from itertools import islice
from pathlib import Path

import torch
from tqdm import tqdm

from maskery import Masker, MaskingConfig
from maskery.data.rows import RowSource, tokenise_rows
from maskery.models.layout import can_pack
from maskery.models.loading import load_masked_lm
from maskery.models.masked_lm import MaskedLanguageModel
from maskery.objectives.mlm import mlm_loss_sum


def read_lines(corpus: Path | None) -> list[str]:
    """The lines of a file, or of the language reference that every Python carries."""
    if corpus is not None:
        return corpus.read_text("utf-8").split("\n")
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics)).split("\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, help="a text file, a line an example")
    parser.add_argument("--model", default="minilm", help="minilm, a folder or a hub name")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20, help="stop after so many")
    parser.add_argument("--batch-tokens", type=int, default=512, help="tokens of a step")
    wanted = parser.parse_args()

    loaded = load_masked_lm(wanted.model)  # attention dropout off: twice as fast
    pad_token_id = loaded.tokenizer.pad_token_id
    packed, _ = can_pack(loaded.model, pad_token_id)  # some families need padding after all
    rows = tokenise_rows(read_lines(wanted.corpus), loaded.tokenizer, max_length=128)
    source = RowSource(
        rows, batch_tokens=wanted.batch_tokens, layout="packed" if packed else "padded"
    )
    model = MaskedLanguageModel(loaded.model, packed=packed, pad_token_id=pad_token_id)
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    model.to(device).train()
    config = MaskingConfig(mask_rate=0.15, mask_share=1.0, random_share=0.0)  # [MASK] alone
    masker = Masker.of(loaded.tokenizer, config=config)
    optim = torch.optim.AdamW(model.parameters(), lr=5e-5, fused=True)

    places = [(e, s) for e in range(wanted.epochs) for s in range(source.num_steps(e))]
    loop = tqdm(list(islice(places, wanted.steps)))
    for epoch, step in loop:
        optim.zero_grad()
        (batch,) = source.micro_batches(epoch, step)
        masked = masker.mask(batch, epoch=epoch)
        logits = model(model.lay_out(masked).to(device))  # of the masked tokens alone
        targets = torch.from_numpy(masked.targets).to(device)
        loss = mlm_loss_sum(logits, targets) / len(targets)
        loss.backward()
        optim.step()
        loop.set_description(f"Epoch {epoch}")
        loop.set_postfix(loss=loss.item())
    print(f"loss of the last step: {loss.item():.3f}")


if __name__ == "__main__":
    main()
