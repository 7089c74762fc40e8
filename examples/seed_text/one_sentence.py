"""The seed document's first step: one sentence, masked, and its loss.

    python examples/seed_text/one_sentence.py
    python examples/seed_text/one_sentence.py --model bert-base-uncased

MiniLM comes without a prediction head, so its guesses only show the mechanics; BERT's are good.
"""

import argparse

import torch

from maskery import Vocabulary, mask
from maskery.models.loading import load_masked_lm

TEXT = (
    "After Abraham Lincoln won the November 1860 presidential election on an anti-slavery "
    "platform, an initial seven slave states declared their secession from the country to form "
    "the Confederacy. War broke out in April 1861 when secessionist forces attacked Fort Sumter "
    "in South Carolina, just over a month after Lincoln's inauguration."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="minilm", help="minilm, a folder or a hub name")
    parser.add_argument("--seed", type=int, default=0, help="another seed masks other words")
    wanted = parser.parse_args()
    loaded = load_masked_lm(wanted.model)
    model, tokenizer = loaded.model, loaded.tokenizer
    # The tokenizer knows which ids are special. The document wrote 101, 102 and 103 by hand, which
    # are right for one vocabulary alone.
    vocabulary = Vocabulary.of(tokenizer)

    inputs = tokenizer(TEXT, return_tensors="pt")
    # The document wrote the masks into `inputs.input_ids`; here the input stays as it is.
    input_ids, labels = mask(
        inputs.input_ids,
        vocabulary.size,
        probability_matrix=0.15,
        vocabulary=vocabulary,
        mask_share=1.0,  # [MASK] alone, as in the document; BERT shows 80% as [MASK]
        random_share=0.0,
        seed=wanted.seed,
    )
    # The document's labels were a clone of the inputs, so its loss was mostly that of copying words
    # that stood there in plain sight. These labels are -100, which the loss skips, except at masks.
    chosen = labels[0] != -100
    print(f"{int(chosen.sum())} of {labels.shape[1]} tokens are masked:")
    print(tokenizer.decode(input_ids[0]))

    with torch.no_grad():
        outputs = model(input_ids=input_ids, attention_mask=inputs.attention_mask, labels=labels)
    # The loss is the mean of -log p(the hidden token); guessing among V tokens gives log V.
    print(f"loss {float(outputs.loss):.3f}; blind guessing has {vocabulary.size:,} choices", end="")
    print(f" and {float(torch.tensor(float(vocabulary.size)).log()):.3f}")

    # One row of logits for each token, one number for each word of the vocabulary. Softmax makes
    # them probabilities that sum to 1; argmax is the word with the largest. Softmax does not change
    # which is largest, so argmax of the logits is the same.
    logits = outputs.logits[0, chosen]
    probabilities = logits.softmax(dim=-1)
    guesses = probabilities.argmax(dim=-1)
    assert torch.equal(guesses, logits.argmax(dim=-1))
    print(f"{'hidden':16}{'argmax':16}{'p(argmax)':>10}{'p(hidden)':>12}")
    for row, (guess, truth) in enumerate(zip(guesses, labels[0, chosen], strict=True)):
        words = tokenizer.convert_ids_to_tokens([int(truth), int(guess)])
        shares = probabilities[row, guess], probabilities[row, truth]
        print(f"{words[0]:16}{words[1]:16}{shares[0]:10.4f}{shares[1]:12.6f}")


if __name__ == "__main__":
    main()
