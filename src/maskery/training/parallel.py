"""A model over several processes: replicated (DDP) or sharded (FSDP2); the same sums either way.

DDP: every process holds the model and its optimiser, gradients are summed in the backward pass.
FSDP2 (`torch.distributed.fsdp.fully_shard`): every process holds a part of each parameter, of its
gradient and of its optimiser state, and whole layers exist only while they are computed. A momentum
twin is sharded as its model is, so it moves without communication.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from maskery.core.errors import ModelError, counted
from maskery.core.processes import join_processes
from maskery.core.task import Task
from maskery.training.config import Sharding

# A model above this share of a GPU is put together on the CPU: shards and evaluations need room.
ROOM = 0.3


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model that was handed to `spread`."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def spread(
    task: Task[Any, Any], optimiser: torch.optim.Optimizer, sharding: Sharding, device: torch.device
) -> None:
    """Bring a task's model to the device and spread it over the processes, if there are several."""
    several = join_processes().world_size > 1
    if not several or sharding == "ddp":
        task.model.to(device)
        if several:
            devices = None if device.type == "cpu" else [device]
            task.model = DistributedDataParallel(
                task.model, device_ids=devices, gradient_as_bucket_view=True
            )
        return
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    names = {id(parameter): name for name, parameter in task.model.named_parameters()}
    shard(task.model, mesh)
    sharded = dict(task.model.named_parameters())
    # The optimiser is fresh: it has no state of the parameters that sharding replaces.
    for group in optimiser.param_groups:
        group["params"] = [sharded[names[id(parameter)]] for parameter in group["params"]]
    twin = twin_of(task)
    if twin is not None:
        shard(twin, mesh)
        twin.to(device)
    task.model.to(device)  # what is not sharded; the rest was never whole on the device


def gather(task: Task[Any, Any]) -> None:
    """Undo `spread`: every process has the whole model again, in place."""
    task.model = unwrapped(task.model)
    for model in (task.model, twin_of(task)):
        if model is not None:
            unshard(model)


def twin_of(task: Task[Any, Any]) -> nn.Module | None:
    """Return the momentum twin of a task (`task.twin.model`), if it has one."""
    twin = getattr(getattr(task, "twin", None), "model", None)
    return twin if isinstance(twin, nn.Module) else None


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a model in place: each layer of its stacks by itself, and the rest together."""
    # A scalar (a temperature) cannot be cut, so it stays whole on every process.
    whole = {parameter for parameter in model.parameters() if parameter.dim() == 0}
    for layer in layers_of(model):
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
        for name in getattr(layer, "FORWARD_METHODS", ()):
            register_fsdp_forward_method(layer, name)
    # Between two forward passes parameters are always parts, for the optimiser, the twin and
    # checkpoints; by default an evaluation would leave some of them whole.
    fully_shard(model, mesh=mesh, reshard_after_forward=True, ignored_params=whole)


def layers_of(model: nn.Module) -> list[nn.Module]:
    """Return the layers of a model's outermost stacks."""
    found: list[nn.Module] = []
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            found += [layer for layer in child if any(True for _ in layer.parameters())]
        else:
            found += layers_of(child)
    return found


def unshard(model: nn.Module) -> None:
    """Turn a sharded model into a plain one with whole parameters, in place."""
    if not any(isinstance(module, FSDPModule) for module in model.modules()):
        return
    home = next(model.parameters()).device
    if home.type == "cuda":
        needed = sum(p.numel() * p.element_size() for p in model.parameters())
        if needed >= ROOM * torch.cuda.get_device_properties(home).total_memory:
            home = torch.device("cpu")  # the same for all processes
    whole: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if isinstance(parameter, DTensor):
                if parameter not in whole:
                    full = parameter.full_tensor().detach().to(home)
                    whole[parameter] = nn.Parameter(full, parameter.requires_grad)
                module._parameters[name] = whole[parameter]
    for module in model.modules():
        if isinstance(module, FSDPModule):
            _leave_fsdp(module)
    model.to(home)


def _leave_fsdp(module: FSDPModule) -> None:
    # There is no public way back: take out the hooks that `fully_shard` put in, and its class.
    state: Any = module._get_fsdp_state()
    state._pre_forward_hook_handle.remove()
    state._post_forward_hook_handle.remove()
    # PyTorch 2.11 has one group, which may be None; 2.13 has several.
    groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
    for group in filter(None, groups):
        for parameter in group.fsdp_params:
            parameter._post_load_hook_handle.remove()
        saves = group._module_to_pre_save_state_dict_hook_handle
        loads = group._module_to_pre_load_state_dict_hook_handle
        for handle in (*saves.values(), *loads.values()):
            handle.remove()
    for name in getattr(module, "FORWARD_METHODS", ()):
        module.__dict__.pop(name, None)  # the wrapped method; the class still has the plain one
    module.__class__ = type(module).__bases__[1]


def last_backward(model: nn.Module, *, last: bool) -> contextlib.AbstractContextManager[Any]:
    """Return the context of a forward and backward pass; DDP sums gradients in the last one."""
    # A sharded model sums them in each pass, because it has no room for whole gradients.
    if last or not isinstance(model, DistributedDataParallel):
        return contextlib.nullcontext()
    return model.no_sync()


@torch.no_grad()
def clip_gradients(parameters: Sequence[nn.Parameter], limit: float) -> torch.Tensor:
    """Scale gradients down to a norm; returns the norm they had, equal on every process."""
    if not any(isinstance(parameter, DTensor) for parameter in parameters):
        return torch.nn.utils.clip_grad_norm_(parameters, limit)
    parts = [p.grad.to_local() for p in parameters if isinstance(p.grad, DTensor)]
    others = [p.grad for p in parameters if p.grad is not None and not isinstance(p, DTensor)]
    # Gradients are averaged already, except those of whole parameters in a sharded model.
    for gradient in others:
        torch.distributed.all_reduce(gradient)
        gradient /= torch.distributed.get_world_size()
    squares = torch.stack([part.float().square().sum() for part in parts]).sum()
    torch.distributed.all_reduce(squares)
    squares += sum(gradient.float().square().sum() for gradient in others)
    norm = squares.sqrt()
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)  # as `clip_grad_norm_` has it
    for gradient in (*parts, *others):
        gradient.mul_(factor)
    return norm


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Gather a tensor that may be sharded; every process must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def laid_out_like(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Move a whole tensor to the device of another, and shard it as that one is."""
    moved = tensor.to(other.device)
    if not isinstance(other, DTensor):
        return moved
    return distribute_tensor(moved, other.device_mesh, other.placements, src_data_rank=None)


def explain_unused(error: RuntimeError, model: nn.Module) -> RuntimeError | ModelError:
    """Return DDP's error about parameters without gradient in one line; others as they are."""
    if "Expected to have finished reduction" not in str(error):
        return error
    trained = [(n, p) for n, p in unwrapped(model).named_parameters() if p.requires_grad]
    unused = [name for name, parameter in trained if parameter.grad is None]
    named = ", ".join(unused[:3]) + (", ..." if len(unused) > 3 else "")
    problem = f"the loss does not reach {counted(len(unused), 'parameter')} ({named})"
    fix = "freeze them (requires_grad_(False)), or train with --sharding fsdp"
    return ModelError(f"{problem}, which the processes would wait for; {fix}")
