"""Layers of every family are found, and a weight's depth is that of the layer that it is in."""

from __future__ import annotations

import pytest
import torch
from families import tiny

from maskery.core.errors import ConfigError
from maskery.models.depth import decayed_rates, depths_of, freeze

# By family, the layers that its configuration describes, and weights with their depth.
CASES = {
    "bert": (2, {"bert.embeddings.LayerNorm.bias": 0, "bert.encoder.layer.1.output.dense.bias": 2,
                 "cls.predictions.bias": 3}),
    "distilbert": (2, {"distilbert.transformer.layer.0.attention.q_lin.bias": 1}),
    "modernbert": (2, {"model.embeddings.norm.weight": 0, "model.final_norm.weight": 2}),
    "electra": (2, {"electra.embeddings_project.weight": 0}),
    # One layer that is computed twice.
    "albert": (1, {"albert.encoder.embedding_hidden_mapping_in.weight": 0}),
    # Tied, and the head is made first.
    "xlm-roberta": (2, {"lm_head.decoder.weight": 0, "lm_head.dense.weight": 3}),
    # Lists of attentions, norms and feed-forwards side by side.
    "xlm": (2, {"transformer.attentions.1.q_lin.bias": 2, "transformer.ffns.0.lin1.bias": 1}),
    # A table of relative positions behind the layers.
    "deberta-v2": (2, {"deberta.encoder.rel_embeddings.weight": 0}),
    "bart": (3, {"model.encoder.layers.1.fc1.bias": 2, "model.decoder.layers.0.fc1.bias": 3,
                 "model.decoder.embed_positions.weight": 0}),
    "funnel": (5, {"funnel.decoder.layers.1.ffn.linear_1.bias": 5}),
}  # fmt: skip


@pytest.mark.parametrize("family", CASES)
def test_depths(family: str) -> None:
    count, known = CASES[family]
    depths, found = depths_of(tiny(family))
    assert found == count
    assert {name: depths[name] for name in known} == known
    assert set(depths.values()) == set(range(count + 2)) - (
        {count + 1} - set(known.values()) if family == "bart" else set()
    )


def test_freezing_leaves_layers_above_and_the_head() -> None:
    model = tiny("bert")
    freeze(model, 1)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    expected = {n for n, _ in model.named_parameters() if ".layer.1." in n or n.startswith("cls.")}
    assert trained == expected
    with pytest.raises(ConfigError, match="--freeze 3: the model has 2 layers; lower it to 2"):
        freeze(model, 3)


def test_rates_decay_by_the_formula() -> None:
    model = tiny("roberta", num_hidden_layers=3)
    rates = decayed_rates(model, 0.9)
    for name, parameter in model.named_parameters():
        depth = 0 if ".embeddings." in name else 3
        if ".layer." in name:
            depth = int(name.split(".layer.")[1].split(".")[0]) + 1
        assert rates[parameter] == pytest.approx(0.9 ** (3 - depth)), name
    assert len(rates) == len(set(model.parameters()))


def test_a_model_without_stacks_has_no_layers() -> None:
    model = tiny("bert")
    model.bert.encoder.layer = torch.nn.ModuleList()
    with pytest.raises(Exception, match="no layers"):
        depths_of(model)
