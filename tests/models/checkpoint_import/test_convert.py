from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, BertConfig, BertForMaskedLM, ViTConfig, ViTModel

from maskery.cli.main import main
from maskery.core.errors import ConfigError, ModelError
from maskery.evaluation.retrieval.config import ModelRetrieval, read_model_retrieval
from maskery.models.checkpoint_import.convert import import_checkpoint
from maskery.models.checkpoint_import.state_dict import read_state_dict
from maskery.models.checkpoint_import.timm_vit import resize_positions
from maskery.models.image_text.build import build_from_scratch
from maskery.models.image_text.model import ImageTextModel
from maskery.models.image_text.sizes import ImageTextSizes

HEADS: dict[str, Any] = {"num_text_heads": 2, "num_vision_heads": 2}
TO_TIMM = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "layernorm": "norm",
    "attention.o_proj": "attn.proj",
    "layers.": "blocks.",
}


def to_timm(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Hugging Face's ViT by timm's names, written the other way round for the tests."""
    named: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if "attention.q_proj" in name:
            three = [state[name.replace("q_proj", f"{c}_proj")] for c in "qkv"]
            new = name.replace("layers.", "blocks.").replace("attention.q_proj", "attn.qkv")
            named[new] = torch.cat(three)
        elif "k_proj" not in name and "v_proj" not in name:
            for ours, theirs in TO_TIMM.items():
                name = name.replace(ours, theirs)
            named[name] = tensor
    return named


def albef_state(model: ImageTextModel) -> dict[str, torch.Tensor]:
    state = {k: v.clone() for k, v in model.state_dict().items()}
    prefix = "visual_encoder.backbone."
    vision = {k.removeprefix(prefix): state.pop(k) for k in list(state) if k.startswith(prefix)}
    state |= {f"visual_encoder.{k}": v for k, v in to_timm(vision).items()}
    words = state["text_encoder.bert.embeddings.word_embeddings.weight"]
    state["text_encoder.cls.predictions.decoder.weight"] = words.clone()
    state["text_encoder.bert.embeddings.position_ids"] = torch.arange(12)[None]
    return state


@pytest.fixture(autouse=True)
def words(tmp_path: Path) -> Path:
    """A list of 50 words beside every checkpoint."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*special, *(f"w{n}" for n in range(45))]) + "\n")
    return path


@pytest.fixture(scope="module")
def model() -> ImageTextModel:
    torch.manual_seed(0)
    sizes = ImageTextSizes(image_size=(16, 16), width=16, num_heads=2, embed_dim=6, max_length=12)
    model = build_from_scratch(sizes, vocabulary_size=50).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_albef_checkpoint_becomes_the_same_model(
    model: ImageTextModel, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"albef{suffix}"
    if suffix == ".pth":
        torch.save({"model": albef_state(model), "epoch": 3}, path)
    else:
        save_file(albef_state(model), path)
    report = import_checkpoint(path, tmp_path / "out", **HEADS)
    assert report.kind == "albef"
    assert report.missing == ()
    assert report.left_over == ("text_encoder.bert.embeddings.position_ids",)
    again = AutoModel.from_pretrained(tmp_path / "out").eval()
    image, ids = torch.randn(2, 3, 16, 16), torch.randint(0, 50, (2, 5))
    assert torch.equal(again(image, ids).logits, model(image, ids).logits)
    assert "1 left over" in (tmp_path / "out" / "import_report.txt").read_text("utf-8")
    assert not (tmp_path / "out" / "extra_state.safetensors").exists()


def test_twin_and_queues_come_along(model: ImageTextModel, tmp_path: Path) -> None:
    state = albef_state(model)
    for name in list(state):
        module, _, rest = name.partition(".")
        if module in ("visual_encoder", "text_encoder", "vision_proj", "text_proj"):
            state[f"{module}_m.{rest}"] = state[name] + 1
    state["image_queue"], state["text_queue"] = torch.randn(6, 8), torch.randn(6, 8)
    state["idx_queue"], state["queue_ptr"] = torch.arange(8)[None], torch.tensor([3])
    torch.save(state, tmp_path / "rasa.pth")
    report = import_checkpoint(tmp_path / "rasa.pth", tmp_path / "out", **HEADS)
    assert len(report.left_over) == 2  # position_ids of both text encoders
    extra = load_file(tmp_path / "out" / "extra_state.safetensors")
    name = "text_encoder.bert.encoder.layer.1.crossattention.self.key.weight"
    torch.testing.assert_close(extra[f"twin.{name}"], model.state_dict()[name] + 1)
    assert torch.equal(extra["image_queue.features"], state["image_queue"].T)
    assert int(extra["text_queue.pointer"]) == 3


def test_missing_heads_are_reported(model: ImageTextModel, tmp_path: Path) -> None:
    state = {k: v for k, v in albef_state(model).items() if not k.startswith("mrtd_head")}
    torch.save(state, tmp_path / "albef.pth")
    report = import_checkpoint(tmp_path / "albef.pth", tmp_path / "out", **HEADS)
    assert report.missing == ("mrtd_head.bias", "mrtd_head.weight")
    assert any("missing    mrtd_head.bias" in line for line in report.lines())


@pytest.mark.parametrize(
    ("lacks", "trained"),
    [
        ("nothing.", ("itc", "itm", "mlm", "prd", "mrtd")),
        (("prd_head.", "mrtd_head."), ("itc", "itm", "mlm")),
        (("prd_head.", "mrtd_head.", "text_encoder.cls."), ("itc", "itm")),
    ],
)
def test_the_folder_says_how_rasa_was_evaluated(
    model: ImageTextModel, tmp_path: Path, lacks: str | tuple[str, ...], trained: tuple[str, ...]
) -> None:
    state = {k: v for k, v in albef_state(model).items() if not k.startswith(lacks)}
    torch.save(state, tmp_path / "rasa.pth")
    heads = ["--text-heads", "2", "--vision-heads", "2"]
    assert main(["convert", str(tmp_path / "rasa.pth"), str(tmp_path / "out"), *heads]) == 0
    # RaSa's Retrieval.py and configs/PS_cuhk_pedes.yaml.
    assert read_model_retrieval(str(tmp_path / "out")) == ModelRetrieval(
        clean_captions=True,
        max_words=50,
        max_length=50,
        rerank=128,
        score="matching",
        trained=trained,
    )


def test_image_positions_are_resized(model: ImageTextModel, tmp_path: Path) -> None:
    torch.save(albef_state(model), tmp_path / "albef.pth")
    report = import_checkpoint(
        tmp_path / "albef.pth", tmp_path / "out", image_size=(32, 8), **HEADS
    )
    assert report.resized == ("visual_encoder.pos_embed: 4 x 4 to 8 x 2 patches",)
    again = AutoModel.from_pretrained(tmp_path / "out")
    assert again.encode_image(torch.randn(1, 3, 32, 8)).shape[1] == 17


def test_resizing_keeps_leading_tokens_constants_and_orientation() -> None:
    table = torch.randn(1, 1 + 12, 5)
    wide = resize_positions(table, (3, 4), (6, 8))
    assert wide.shape == (1, 1 + 48, 5)
    assert torch.equal(wide[:, 0], table[:, 0])
    flipped = torch.cat((table[:, :1], table[:, 1:].view(1, 3, 4, 5).flip(2).reshape(1, 12, 5)), 1)
    mirrored = resize_positions(flipped, (3, 4), (6, 8))[:, 1:].view(6, 8, 5).flip(1)
    torch.testing.assert_close(mirrored, wide[:, 1:].view(6, 8, 5))
    constant = resize_positions(torch.ones(1, 13, 2), (3, 4), (5, 2))
    torch.testing.assert_close(constant, torch.ones(1, 11, 2))


def test_a_timm_vit_becomes_hugging_faces(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = ViTConfig(
        image_size=16, patch_size=4, intermediate_size=24, layer_norm_eps=1e-6, **sizes
    )
    vit = ViTModel(config, add_pooling_layer=False).eval()
    state = to_timm(dict(vit.state_dict())) | {"head.weight": torch.zeros(3, 16)}
    torch.save(state, tmp_path / "vit.pth")
    report = import_checkpoint(tmp_path / "vit.pth", tmp_path / "out", num_vision_heads=2)
    assert (report.kind, report.left_over, report.missing) == ("vit", ("head.weight",), ())
    again = ViTModel.from_pretrained(tmp_path / "out", add_pooling_layer=False).eval()
    image = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(again(image).last_hidden_state, vit(image).last_hidden_state)


def test_an_old_bert_becomes_a_masked_language_model(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    bert = BertForMaskedLM(BertConfig(vocab_size=50, intermediate_size=24, **sizes)).eval()
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in bert.state_dict().items()
    }
    old["cls.seq_relationship.weight"] = torch.zeros(2, 16)
    torch.save(old, tmp_path / "bert.bin")
    report = import_checkpoint(tmp_path / "bert.bin", tmp_path / "out", num_text_heads=2)
    assert report.left_over == ("cls.seq_relationship.weight",)
    assert report.missing == ()
    again = BertForMaskedLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.randint(0, 50, (1, 6))
    torch.testing.assert_close(again(ids).logits, bert(ids).logits)


class RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran"),))


def test_a_pickle_that_runs_code_is_refused_unrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"x": torch.zeros(1)}, "config": RunsCode()}, tmp_path / "bad.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(RunsCode()))
    for name in ("bad.pth", "raw.pth"):
        with pytest.raises(ModelError, match=r"could run code|not a PyTorch file") as caught:
            read_state_dict(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.pth", b"", "damaged or not a PyTorch file"),
        ("noise.pth", b"\x00\x01 not a checkpoint" * 50, "damaged|run code"),
        ("noise.safetensors", b"\x00" * 64, "not a readable safetensors"),
    ],
)
def test_damaged_files_are_one_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        read_state_dict(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_truncated_files_are_one_line(model: ImageTextModel, tmp_path: Path) -> None:
    torch.save(albef_state(model), tmp_path / "whole.pth")
    content = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "half.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="damaged"):
        read_state_dict(tmp_path / "half.pth")


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a file"):
        read_state_dict(tmp_path / "none.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ModelError, match="holds a list"):
        read_state_dict(tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "nothing.pth")
    with pytest.raises(ModelError, match="no tensors"):
        read_state_dict(tmp_path / "nothing.pth")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    with pytest.raises(ModelError, match="no known model"):
        import_checkpoint(tmp_path / "resnet.pth", tmp_path / "out")


@pytest.mark.parametrize(
    "name",
    [
        "text_encoder.bert.encoder.layer.1.attention.self.query.weight",
        "visual_encoder.blocks.1.mlp.fc2.weight",
        "visual_encoder.pos_embed",
        "vision_proj.weight",
        "text_encoder.bert.embeddings.word_embeddings.weight",
    ],
)
def test_wrong_shapes_are_one_line(model: ImageTextModel, tmp_path: Path, name: str) -> None:
    state = albef_state(model)
    state[name] = torch.zeros(7)
    torch.save(state, tmp_path / "wrong.pth")
    with pytest.raises(ModelError, match=name.split(".")[-1 if "pos" in name else -2]) as caught:
        import_checkpoint(tmp_path / "wrong.pth", tmp_path / "out", **HEADS)
    assert "\n" not in str(caught.value)


def test_a_folder_with_content_is_left_alone(model: ImageTextModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not an empty folder"):
        import_checkpoint(tmp_path / "x.pth", Path(__file__).parent)
