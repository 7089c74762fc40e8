"""Read a checkpoint: its tensors, the settings and tokenizer beside it, and a report of its keys.

Nothing in a file is run.
"""

import json
import pickle
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os.path import commonprefix
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.serialization import get_unsafe_globals_in_checkpoint
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase

from maskery.core.batch import require_mask, vocabulary_size
from maskery.core.errors import MALFORMED, ConfigError, ModelError, explained, listed, reason_of
from maskery.models.loading import quiet_transformers

NESTED_UNDER = ("model", "state_dict")  # Where training loops keep weights beside the optimiser
WHOLE, INDEX = ("model.safetensors", "pytorch_model.bin"), ".index.json"
# What other files begin with, that are taken for checkpoints.
STARTS = {
    b"\x89HDF": "an HDF5 file, as Keras and TensorFlow write",
    b"GGUF": "a GGUF file of llama.cpp",
    b"\x93NUMPY": "an array of NumPy",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself (git lfs pull)",
    b"<!DOCTYPE": "a web page, not the file that it offers",
    b"<html": "a web page, not the file that it offers",
}
# Files of other frameworks, whose beginnings tell nothing.
ENDS = {
    ".h5": "Keras or TensorFlow", ".index": "TensorFlow", ".meta": "TensorFlow",
    ".msgpack": "Flax", ".onnx": "ONNX", ".npz": "NumPy or JAX",
}  # fmt: skip
ZIP = b"PK\x03\x04"  # What files of PyTorch begin with; older ones are plain pickles
SHOWN = 8  # keys in a message
CONFIG, WORDS = "config.json", "vocab.txt"
# A folder with one of these has a tokenizer of its own; else its list of words is read.
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json")
# Width to heads, only where all published models agree: of width 384, MiniLM has 12 and DeiT has 6.
HEADS = {"text": {768: 12, 1024: 16}, "vision": {192: 3, 768: 12, 1024: 16, 1280: 16}}
PADDING = 0.01  # Rows of padding, as of rounded-up vocabularies, are a smaller share than this

State = dict[str, torch.Tensor]  # Tensors by name


class Given(NamedTuple):
    """Settings that no tensor tells; None for those of the `config.json`, or what is usual."""

    image_size: tuple[int, int] | None = None  # Height and width that positions are resized to
    text_heads: int | None = None
    vision_heads: int | None = None


def read_state_dict(path: Path) -> tuple[State, list[str]]:
    """Read the tensors of a checkpoint file, or of the weights in a Hugging Face folder.

    A training checkpoint that keeps its weights under "model" or "state_dict" is entered, and a
    prefix that all names share is dropped. A pickle that asks to run code is refused. Returns the
    tensors, and notes on how they were read.
    """
    notes: list[str] = []
    content: dict[object, object] = {}
    for file in _files(path):
        content.update(_load(file, notes))
    tensors = {str(n): value for n, value in content.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        places = "at its top level or under 'model' or 'state_dict'"
        fix = f"its top-level keys are {_listed(content)}; save model.state_dict()"
        raise ModelError(f"checkpoint '{path}' holds no tensors {places}; {fix}")
    if bad := [n for n, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]:
        problem = f"checkpoint '{path}' holds values that are not numbers (NaN or infinite)"
        cause = f"the first '{bad[0]}': its training diverged or it is damaged"
        raise ModelError(f"{problem} in {len(bad)} tensors, {cause}; use an earlier one")
    # Characters are compared, and what is shared is then cut to whole parts of a name.
    shared = commonprefix(list(tensors)).rpartition(".")[0]  # noqa: RUF071
    if shared and len(tensors) > 1:
        notes.append(f"every name begins with '{shared}.', which is left out")
        tensors = {name.removeprefix(f"{shared}."): value for name, value in tensors.items()}
    return tensors, notes


def _listed(content: Iterable[object]) -> str:
    return listed([f"'{key!s:.40}'" for key in content], SHOWN) or "none"


def _files(path: Path) -> list[Path]:
    """Return the files with the weights of a folder; a file is its own."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        fix = "give a .pth or .safetensors file, or a Hugging Face folder"
        raise ModelError(f"checkpoint '{path}' is not a file; {fix}")
    for name in WHOLE:
        if (path / name).is_file():
            return [path / name]
        if (index := path / f"{name}{INDEX}").is_file():
            problem = f"'{index}' is no index of weights"
            with explained(problem, "", OSError, *MALFORMED, kind=ModelError):
                names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
                files = [path / Path(name).name for name in names]
            if missing := [file.name for file in files if not file.is_file()]:
                problem = f"'{index}' names {missing[0]}, which is not there"
                raise ModelError(f"{problem}; fetch it again")
            return files
    there = _listed(sorted(file.name for file in path.iterdir()))
    problem = f"the folder '{path}' has no {' or '.join(WHOLE)}; it has {there}"
    raise ModelError(f"{problem}; name the file with the weights")


def _load(path: Path, notes: list[str]) -> dict[object, object]:
    """Return the dictionary of a file that holds the tensors."""
    content = _read(path, notes)
    for key in NESTED_UNDER:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            if others := [other for other in content if other != key]:
                notes.append(f"read '{key}' of the file; beside it are {_listed(others)}")
            content = content[key]
            break
    if not isinstance(content, dict):
        problem = f"checkpoint '{path}' holds a {type(content).__name__}"
        rule = "it must hold a dictionary of tensors, plain or under 'model'"
        raise ModelError(f"{problem}: {rule}; save model.state_dict()")
    return content


def _read(path: Path, notes: list[str]) -> object:
    with path.open("rb") as file:
        start = file.read(64)
    what = next((what for known, what in STARTS.items() if start.startswith(known)), None)
    if what is None and path.suffix in ENDS:
        what = f"a checkpoint of {ENDS[path.suffix]}, by its name"
    if what is not None:
        problem = f"'{path}' is {what}: a PyTorch or safetensors file is needed"
        raise ModelError(f"{problem}; convert it where it comes from, or fetch the other one")
    # A header's length in eight bytes, then JSON; a PyTorch file is a zip archive or a pickle.
    safe = start[8:9] == b"{" or (path.suffix == ".safetensors" and not start.startswith(ZIP))
    if safe != (path.suffix == ".safetensors"):
        notes.append(f"a {'safetensors' if safe else 'PyTorch'} file, which its name does not say")
    try:
        if safe:
            return load_file(path)
        # PyTorch is given the open file, since it would go by the name as well. It warns of an
        # unusual pickle protocol; what cannot be read is an error below.
        with warnings.catch_warnings(action="ignore"), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        problem = f"checkpoint '{path}' is not a readable safetensors file ({error})"
        raise ModelError(f"{problem}; fetch it again") from error
    except pickle.UnpicklingError as error:
        raise _needs_code(path, error) from error
    except Exception as error:  # bytes that are no pickle can fail in any way (struct.error, ...)
        if "TorchScript" in str(error):
            raise _whole_model(path) from error
        reason = reason_of(error, most=160)
        problem = f"checkpoint '{path}' is damaged or not a PyTorch file ({reason})"
        raise ModelError(f"{problem}; fetch it again") from error


def _needs_code(path: Path, error: Exception) -> ModelError:
    """Say whether a refused pickle is a whole model, or what else it asks for."""
    try:
        names = get_unsafe_globals_in_checkpoint(path)
    except Exception:  # no archive of PyTorch
        names = []
    if any(name.startswith("torch.nn.modules.") for name in names):
        return _whole_model(path)
    refused = reason_of(error, most=160)
    for line in str(error).splitlines():
        if "GLOBAL" in line or "Unsupported" in line:  # PyTorch names what it refused
            refused = line.partition("GLOBAL")[2].strip(" .")[:120] or line.strip()[:120]
            break
    problem = f"checkpoint '{path}' holds more than tensors, which could run code when read"
    fix = "save it anew as a plain state_dict, or as safetensors"
    return ModelError(f"{problem} ({refused}); {fix}")


def _whole_model(path: Path) -> ModelError:
    problem = f"checkpoint '{path}' is a whole saved model, not its tensors"
    fix = "load it where it was made and save model.state_dict()"
    return ModelError(f"{problem}: reading it would run code; {fix}")


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """Lists every key of an imported checkpoint, used or not."""

    kind: str  # What the checkpoint was taken for: "albef", "vit", or the family ("bert", ...)
    used: dict[str, str]  # By name in the file, where in the model it went
    missing: tuple[str, ...]  # Parameters that the file does not have; freshly initialised
    left_over: tuple[str, ...]  # Names in the file that the model has no place for
    resized: tuple[str, ...] = ()  # Position tables that were interpolated, with both sizes
    notes: tuple[str, ...] = ()  # What was taken for granted

    def lines(self) -> list[str]:
        """Write the report as text, one line a fact."""
        without = f"{len(self.missing)} missing, {len(self.left_over)} left over"
        lines = [f"read as {self.kind}: {len(self.used)} used, {without}"]
        lines += [f"  note       {note}" for note in self.notes]
        lines += [f"  resized    {name}" for name in self.resized]
        lines += [f"  missing    {name} (freshly initialised)" for name in self.missing]
        lines += [f"  left over  {name}" for name in self.left_over]
        return lines


def read_described(folder: Path) -> dict[str, Any]:
    """Read the `config.json` of a folder; empty if there is none."""
    path = folder / CONFIG
    if not path.is_file():
        return {}
    problem = f"'{path}' is not readable JSON"
    with explained(problem, "", OSError, ValueError, kind=ModelError, most=120):
        described = json.loads(path.read_text("utf-8"))
    if not isinstance(described, dict):
        raise ModelError(f"'{path}' holds a {type(described).__name__}: it must hold an object")
    return described


def part_of(described: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Return the settings of the text or vision side: of their own, or those of the whole."""
    own = described.get(f"{part}_config")
    if isinstance(own, dict):
        return own
    # A whole that is a BERT describes the text side; its picture side can be named in passing.
    heads = {"num_attention_heads": described.get("vision_heads")}
    return heads if part == "vision" else {**described}


def heads_of(side: str, width: int, given: int | None, described: Mapping[str, Any]) -> int:
    """Return the attention heads: as given, as described, or as all published models have."""
    heads = given or described.get("num_attention_heads") or HEADS[side].get(width)
    if heads is None:
        problem = f"no tensor tells the attention heads of the {side} encoder"
        fix = f"give --{side}-heads, or put the model's config.json beside the file"
        raise ConfigError(f"{problem}, and its width {width} allows several numbers: {fix}")
    if not isinstance(heads, int) or heads < 1 or width % heads:
        rule = f"the number must divide its width {width}"
        fix = f"give --{side}-heads, or mend the config.json beside the file"
        raise ConfigError(f"{heads} attention heads of the {side} encoder: {rule}; {fix}")
    return heads


def read_tokenizer(name: str | None, folder: Path, num_rows: int) -> PreTrainedTokenizerBase:
    """Load the tokenizer `name`, or the one in `folder`; it must fit the vocabulary's rows."""
    if name is None and not any((folder / file).is_file() for file in (*TOKENIZERS, WORDS)):
        problem = "the checkpoint has no tokenizer beside it"
        fix = "name one with --tokenizer (ALBEF's and RaSa's: bert-base-uncased)"
        raise ModelError(f"{problem}, without which its {num_rows} words mean nothing: {fix}")
    source = str(folder) if name is None else name
    tokenizer = _load_tokenizer(source)
    size = vocabulary_size(tokenizer)
    if not num_rows * (1 - PADDING) < size <= num_rows:
        problem = f"the tokenizer '{source}' has {size} words and the checkpoint {num_rows} rows"
        fix = "name the checkpoint's own with --tokenizer"
        raise ModelError(f"{problem} for them: they do not belong together; {fix}")
    require_mask(tokenizer)
    return tokenizer


def _load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder, a list of words, or the hub."""
    path = Path(source).expanduser()
    words = path / WORDS if path.is_dir() else path
    problem = f"'{source}' is not a tokenizer that can be read"
    # Damaged files of tokenizers fail in any way.
    with explained(problem, "", Exception, kind=ModelError, most=140), quiet_transformers():
        if words.is_file() and not any((words.parent / file).is_file() for file in TOKENIZERS):
            listed = words.read_text("utf-8").split("\n")
            # A list without capitals is of a lower-casing BERT; only [CLS] and such have some.
            cased = any(word != word.lower() for word in listed if not word.startswith("["))
            return BertTokenizer(str(words), do_lower_case=not cased)
        name = path if path.is_dir() else source
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
