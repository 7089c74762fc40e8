"""A GPU that is not there: tensors that say they are on it, and are computed on the CPU.

Where tensors of both devices are mixed it fails as a GPU does, and where the host would wait for it
the place is noted. What it cannot show is speed, memory and the rounding of other kernels.

    python stand_in_gpu.py OUT.json WORK.json   # {name: the arguments of a maskery command}
    python stand_in_gpu.py OUT.json SCRIPT ARGUMENT ...

OUT.json tells of each what it ended with, what it printed and how often the host waited, by the
functions of Maskery that it waited in. It is a program of its own: PyTorch asks once, when it is
imported, if there is a GPU.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import importlib.util
import io
import json
import runpy
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

SOURCE = Path(__file__).with_suffix(".cpp")


def load_device() -> None:
    """Compile what PyTorch's engine asks of a device, and load it before PyTorch."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    home = Path(spec.origin or "").parent
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "device.so"
        command = ["g++", "-std=c++20", "-shared", "-fPIC", f"-I{home / 'include'}", str(SOURCE)]
        command += [f"-L{home / 'lib'}", "-lc10", "-ltorch_cpu", "-o", str(library)]
        subprocess.run(command, check=True)
        for path in (home / "lib/libtorch_cpu.so", library):
            ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)


assert "torch" not in sys.modules
load_device()

import torch  # noqa: E402
from torch.nn.attention import varlen  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402
from torch.utils._python_dispatch import (  # noqa: E402
    TorchDispatchMode,
    return_and_correct_aliasing,
)
from torch.utils._pytree import tree_leaves, tree_map  # noqa: E402

aten = torch.ops.aten
flash = torch.ops.torch_attn
GPU = torch.device("cuda", 0)
CAPABILITY = (9, 0)
# What has to know how many values there are, or which.
WAITS = ("_local_scalar_dense", "equal", "nonzero", "masked_select", "repeat_interleave")
WAITS += ("_unique2", "unique_dim")
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")

waits: Counter[str] = Counter()  # how often the host waited, by what for and in which functions
debug_mode = {"sync": "default"}  # of `torch.cuda.set_sync_debug_mode`


def note_wait(kind: str) -> None:
    """Note that the host waits now."""
    frames = [f for f in traceback.extract_stack() if "/maskery/" in f.filename]
    places = (f"{f.filename.rpartition('/maskery/')[2]}:{f.name}" for f in reversed(frames))
    waits[" < ".join([kind, *places])] += 1
    if frames and debug_mode["sync"] == "warn":
        where = frames[-1].filename, frames[-1].lineno or 0
        warnings.warn_explicit("called a synchronizing CUDA operation", UserWarning, *where)


class OnGPU(torch.Tensor):
    """A tensor on the GPU; its values are those of `held`, on the CPU."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Any:
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), dtype=held.dtype, device=GPU, **layout
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, operation: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(operation, args, kwargs or {})

    def tolist(self) -> Any:
        """Wait for the values."""
        note_wait("tolist")
        return self.held.tolist()

    def numpy(self) -> Any:  # type: ignore[override]
        """Refuse, as PyTorch does."""
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy

    def untyped_storage(self) -> Any:
        """Tell shared weights apart when a model is saved."""
        return self.held.untyped_storage()

    def data_ptr(self) -> int:
        """Tell storages apart."""
        return self.held.data_ptr()


def held(value: Any) -> Any:
    """Return what is computed with in place of an argument."""
    return value.held if isinstance(value, OnGPU) else value


def placed(value: Any) -> Any:
    """Put a result on the GPU."""
    plain = isinstance(value, torch.Tensor) and not isinstance(value, OnGPU)
    return OnGPU(value) if plain else value


def compute(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute an operation of PyTorch, of tensors on either device."""
    name = operation._schema.name.partition("::")[2]
    if operation in (flash._varlen_attn.default, flash._varlen_attn_backward.default):
        return attend([held(arg) for arg in args])
    asked = kwargs.get("device")
    goes = None if asked is None else torch.device(asked).type == "cuda"
    if name == "_to_copy":
        return copied(args[0], {**kwargs}, goes)
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    here = any(isinstance(tensor, OnGPU) for tensor in tensors)
    if name == "copy_":
        if isinstance(args[1], OnGPU) and not isinstance(args[0], OnGPU):
            note_wait("copy to the CPU")
        held(args[0]).copy_(held(args[1]))
        return args[0]
    if here:
        refuse_mixed(name, args, tensors)
        if name in WAITS and kwargs.get("output_size") is None:
            note_wait(name)
        if name in INDEXING and any(getattr(i, "dtype", None) == torch.bool for i in args[1]):
            note_wait("index by bools")
    kwargs = kwargs | ({"device": torch.device("cpu")} if goes else {})
    found = operation(*tree_map(held, args), **tree_map(held, kwargs))
    if goes is False or not (here or goes):
        return found
    found = tree_map(placed, found)
    return return_and_correct_aliasing(operation, args, kwargs, found) if here else found


def copied(tensor: torch.Tensor, kwargs: dict[str, Any], goes: bool | None) -> torch.Tensor:
    """Copy a tensor to a device, or to another type."""
    here = isinstance(tensor, OnGPU)
    if here and goes is False:
        note_wait("copy to the CPU")
    for name in ("device", "pin_memory", "non_blocking"):
        kwargs.pop(name, None)
    made: torch.Tensor = aten._to_copy.default(held(tensor), **kwargs)
    return OnGPU(made) if goes or (here and goes is None) else made


def refuse_mixed(name: str, args: Any, tensors: list[torch.Tensor]) -> None:
    """Raise what PyTorch raises where some tensors are on the CPU; numbers and indices may be."""
    for tensor in tensors:
        if isinstance(tensor, OnGPU) or tensor.dim() == 0:
            continue
        if name in INDEXING and tensor is not args[0]:
            note_wait("copy of an index")
            continue
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, "
            f"cuda:0 and cpu! ({name}: {tuple(tensor.shape)} on the CPU)"
        )


def attend(args: list[Any]) -> tuple[OnGPU, ...]:
    """Compute `varlen_attn` or its gradients, which no CPU has, sequence by sequence."""
    forward = args[3].dtype == torch.int32
    gradient, query, key, value = [None, *args[:3]] if forward else args[:4]
    ends, scale, window = (args[3], args[8], args[9]) if forward else (args[6], *args[12:14])
    assert query.dtype in (torch.bfloat16, torch.float16)

    def result(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        groups, outputs = query.shape[1] // key.shape[1], []
        for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
            apart = torch.arange(end - start)[:, None] - torch.arange(end - start)
            seen = (window[0] < 0) | (apart <= window[0])
            seen = seen & ((window[1] < 0) | (-apart <= window[1]))
            q, k, v = (t[start:end].transpose(0, 1).float() for t in (query, key, value))
            k, v = (t.repeat_interleave(groups, dim=0) for t in (k, v))
            scores = (q @ k.mT * scale).masked_fill(~seen, float("-inf"))
            outputs.append((scores.softmax(dim=-1) @ v).transpose(0, 1))
        return torch.cat(outputs).to(query.dtype)

    def gradients() -> tuple[torch.Tensor, ...]:
        with torch.enable_grad():
            leaves = [t.detach().clone().requires_grad_() for t in (query, key, value)]
            return torch.autograd.grad(result(*leaves), leaves, gradient)

    if forward:
        sums, state = torch.zeros(query.shape[1], len(query)), torch.zeros(2, dtype=torch.uint64)
        return OnGPU(result(query, key, value)), OnGPU(sums), OnGPU(state)
    # Of a thread that PyTorch does not differentiate in at this moment.
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return tuple(map(OnGPU, thread.submit(gradients).result()))


class Factories(TorchDispatchMode):
    """Makes new tensors on the GPU where that is asked for."""

    def __torch_dispatch__(self, operation: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(operation, args, kwargs or {})


class Moves(TorchFunctionMode):
    """Moves tensors, for which PyTorch itself would look for a GPU first."""

    def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(function, "__name__", "")
        kwargs.pop("pin_memory", None)
        if name == "__deepcopy__" and isinstance(args[0], OnGPU):
            return self._deep_copy(*args)
        if name in ("to", "cuda", "cpu"):
            return self._move(function, name, args, kwargs)
        made_here = torch.device(kwargs.get("device") or "cpu").type == "cuda"
        if name in ("tensor", "as_tensor") and made_here:
            note_wait(f"torch.{name} on the GPU")
            return function(*args, **kwargs | {"device": "cpu"}).to(GPU)
        if name == "new_tensor" and isinstance(args[0], OnGPU):
            note_wait(name)
            return torch.tensor(args[1], dtype=args[0].dtype).to(GPU)
        return function(*args, **kwargs)

    @staticmethod
    def _deep_copy(tensor: OnGPU, memo: dict[int, Any]) -> Any:
        if id(tensor) not in memo:
            made = OnGPU(tensor.held.clone())
            is_weight = isinstance(tensor, torch.nn.Parameter)
            weight = torch.nn.Parameter(made, tensor.requires_grad) if is_weight else made
            memo[id(tensor)] = weight
        return memo[id(tensor)]

    @staticmethod
    def _move(function: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        tensor, device, dtype = args[0], kwargs.get("device"), kwargs.get("dtype")
        if name != "to":
            device = torch.device(name)
        for arg in args[1:]:
            if isinstance(arg, torch.dtype):
                dtype = arg
            elif isinstance(arg, torch.Tensor):
                device, dtype = arg.device, arg.dtype
            elif isinstance(arg, str | torch.device):
                device = torch.device(arg)
        device, dtype = torch.device(device or tensor.device), dtype or tensor.dtype
        if "cuda" not in (device.type, tensor.device.type):
            return function(*args, **kwargs)
        same = device.type == tensor.device.type and dtype == tensor.dtype
        if same and not kwargs.get("copy"):
            return tensor
        return aten._to_copy.default(tensor, device=device, dtype=dtype)


def _apply(module: torch.nn.Module, function: Any, recurse: bool = True) -> torch.nn.Module:
    """Move a module's weights and buffers; they stay the same objects, as PyTorch's do."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                with torch.no_grad():
                    new = function(tensor)
                if new is tensor:
                    continue
                if isinstance(tensor, torch.nn.Parameter):
                    new = torch.nn.Parameter(new, tensor.requires_grad)
                    torch.utils.swap_tensors(tensor, new)
                else:
                    tensors[name] = new
    return module


def nothing(*_: Any, **__: Any) -> None:
    """Do nothing."""


GIBIBYTE = 1 << 30
new_empty = torch.empty
ANSWERS: dict[str, Any] = {
    **dict.fromkeys(("is_available", "is_initialized", "is_bf16_supported"), True),
    **{"device_count": 1, "current_device": 0, "get_device_name": "a stand-in"},
    **{"get_device_capability": CAPABILITY, "max_memory_allocated": GIBIBYTE},
    **{"mem_get_info": (8 * GIBIBYTE, 8 * GIBIBYTE), "amp.common.amp_definitely_not_available": 0},
}
SILENT = ("synchronize", "set_device", "manual_seed_all", "set_rng_state", "empty_cache")
SILENT += ("reset_peak_memory_stats",)
REPLACED: dict[str, Any] = {
    "torch.nn.Module._apply": _apply,
    "torch.get_autocast_dtype": lambda _: torch.bfloat16,
    "torch.cuda.set_sync_debug_mode": lambda mode: debug_mode.update(sync=mode),
    "torch.cuda.get_rng_state": lambda *_: torch.get_rng_state(),
    "torch.Tensor.pin_memory": lambda tensor, *_: tensor,
    # In threads, which modes do not reach.
    "torch.empty": lambda *args, pin_memory=False, **kwargs: new_empty(*args, **kwargs),
}


@contextlib.contextmanager
def gpu() -> Iterator[None]:
    """Let there be a GPU."""
    waits.clear()
    with contextlib.ExitStack() as stack:
        for name, value in ANSWERS.items():
            answer = mock.Mock(return_value=value)
            stack.enter_context(mock.patch(f"torch.cuda.{name}", answer))
        for name in SILENT:
            stack.enter_context(mock.patch(f"torch.cuda.{name}", nothing))
        for name, value in REPLACED.items():
            stack.enter_context(mock.patch(name, value))
        stack.enter_context(Factories())
        stack.enter_context(Moves())
        yield


def main(out: Path, work: str, *arguments: str) -> None:
    """Run commands, or one script, and write what became of them."""
    found: dict[str, Any] = {}
    if not work.endswith(".json"):
        sys.argv = [work, *arguments]
        with gpu():
            runpy.run_path(work, run_name="__main__")
        found["script"] = {"code": 0, "waits": dict(waits)}
    else:
        from maskery.cli.main import main as maskery

        for name, command in json.loads(Path(work).read_text("utf-8")).items():
            with gpu(), contextlib.redirect_stdout(io.StringIO()) as printed:
                code = maskery(command)
            found[name] = {"code": code, "waits": dict(waits), "printed": printed.getvalue()}
    out.write_text(json.dumps(found), "utf-8")


assert varlen  # its operations are known once it is imported
if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
