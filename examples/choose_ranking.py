"""Choose on validation how a person-search run's model ranks anew, and save it with the model.

    python examples/choose_ranking.py runs/people

Tried are the best 16, 64 and 128 pictures of each caption, by the sum of similarity and the odds of
a match at several weights, against similarity alone. Chosen is the best R@1 on the run's validation
split, then the best mAP, then the fewest pictures; similarity alone, where no choice gains R@1 by
its paired 95% interval: what does not pay is not computed. `maskery evaluate`, `search` and the
playground read the choice from the model's `maskery_retrieval.json`. `--dry` only prints.

Shapes: T captions, K pictures of each.
"""

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from maskery.data.person_search.dataset import open_person_search
from maskery.evaluation.intervals import grouped_interval
from maskery.evaluation.retrieval.config import save_model_retrieval
from maskery.evaluation.retrieval.evaluate import Retrieval, moved
from maskery.evaluation.retrieval.metrics import rank, summarise_texts, text_figures
from maskery.models.loading import resolve
from maskery.runs.image_text.config import Overrides
from maskery.runs.person_search.evaluate import held_out_set, open_for_measuring, own_run

RERANKS, WEIGHTS = (16, 64, 128), (0.1, 0.2, 0.5, 1.0, 2.0)


def tried(found: Retrieval, persons: Any, temperature: float) -> list[dict[str, Any]]:
    """Measure every choice; `found` has matched the most pictures, so each is a sorting of it.

    `persons` are those of the captions (T,). A gain is in R@1 over similarity alone.
    """
    assert found.logits is not None
    odds, ranks = found.logits[..., 1] - found.logits[..., 0], found.contrastive.ranks
    similar, plain = found.contrastive.scores / temperature, text_figures(ranks)
    rows = []
    for k in dict.fromkeys(min(k, odds.shape[1]) for k in RERANKS):
        for weight in WEIGHTS:
            own = text_figures(moved(ranks, rank(weight * odds[:, :k] + similar[:, :k])))
            gain = grouped_interval(own[:, 0] - plain[:, 0], persons, "difference of shares")
            figures = asdict(summarise_texts(own, persons))
            rows.append({"rerank": k, "odds_weight": weight, "gain": gain, **figures})
    return rows


def chosen(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the settings of the best choice that gains for certain."""
    paying = [row for row in rows if row["gain"].low > 0]  # false where it is not known
    if not paying:
        return {"rerank": 0}
    best = max(paying, key=lambda row: (row["r1"], row["map"]))
    return {"rerank": best["rerank"], "score": "sum", "odds_weight": best["odds_weight"]}


def choose_ranking(name: str, *, save: bool = True) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Try every choice on a run's validation split; returns all, and the one saved."""
    run = own_run(name, needed=True)
    assert run is not None
    opened, settings = open_for_measuring(name, run, Overrides())
    data = open_person_search(Overrides().of_data(run.data, opened.retrieval))
    gallery = held_out_set(opened, run, data.val, run.data, settings)
    found = gallery.evaluate(opened.model, replace(settings, rerank=max(RERANKS)))
    rows = tried(found, gallery.text_persons, float(opened.model.temp.detach()))
    best = chosen(rows)
    if save:
        save_model_retrieval(Path(resolve(name)), replace(opened.retrieval, **best))
    print(f"similarity alone: R@1 {found.figures.contrastive.r1.value:.1%}, on validation")
    return rows, best


def main() -> None:
    """Choose, and print what was tried."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run")
    parser.add_argument("--dry", action="store_true")
    wanted = parser.parse_args()
    rows, best = choose_ranking(wanted.run, save=not wanted.dry)
    for row in rows:
        gain = " to ".join(f"{100 * end:+.1f}" for end in row["gain"][1:])
        choice = f"best {row['rerank']}, odds at {row['odds_weight']:g}"
        print(f"{choice}: R@1 {row['r1'][0]:.1%} ({gain} points), mAP {row['map'][0]:.1%}")
    print(f"chosen{' (not saved)' if wanted.dry else ', and saved with the model'}: {best}")


if __name__ == "__main__":
    main()
