"""A device of torch's that is not the CPU, on machines without one: tensors in CPU memory that keep to themselves.

As on a GPU, an operation on tensors of both places is refused (but on numbers, and copies), and NumPy gets none
without a copy. Numbers and random streams are the CPU's. Torch hands every operation on such tensors to `_computed`,
through its experimental support of devices written in Python.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretended"


class _Module:
    """What torch asks of a device that has a random stream: the CPU's is taken."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return []

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.default_generator.get_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        torch.default_generator.set_state(state)


_setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
# By the address of the storage that torch believes a tensor has; with that storage, since torch adds a gradient to
# another in place where nothing else holds it, and does not know of views here.
_in_memory: dict[int, tuple[Tensor, Any]] = {}
_FORGOTTEN_AFTER = 1000  # tensors of which most are used no more


def _held(memory: Tensor) -> Tensor:
    """A tensor of the device, for one in memory. Its storage is empty, and its strides are those of a whole tensor."""
    tensor = torch._C._acc.create_empty_tensor(tuple(memory.shape), memory.dtype)
    storage = tensor.untyped_storage()
    _in_memory[storage._cdata] = memory, storage
    if len(_in_memory) % _FORGOTTEN_AFTER == 0:
        forget_unused()
    return tensor


def forget_unused() -> None:
    """Give back the memory of tensors that are none any more."""
    for address in [address for address in _in_memory if torch._C._storage_Use_Count(address) == 1]:
        del _in_memory[address]


def _memory_of(tensor: Tensor) -> Tensor:
    memory, _ = _in_memory[tensor.untyped_storage()._cdata]
    if memory.shape == tensor.shape and tensor.is_contiguous():
        return memory
    whole = memory.contiguous()
    return whole.as_strided(tensor.shape, tensor.stride(), whole.storage_offset() + tensor.storage_offset())


def _computed(operation: Any, *args: Any, **kwargs: Any) -> Any:
    """Any operation that torch has no other way to do on the device, done in memory."""
    name, held, written = operation._schema.name, {}, []

    def in_memory(value: Any, is_written: bool) -> Any:
        if isinstance(value, torch.device):
            return torch.device("cpu")
        if not isinstance(value, Tensor):
            return value
        if value.device.type == NAME:
            memory = _memory_of(value)
            whole = memory.contiguous()  # as torch believes that it is
            held[id(whole)] = value, whole
            written.extend([(memory, whole)] if is_written and whole is not memory else [])
            return whole
        if value.ndim:
            raise RuntimeError(f"expected all tensors of {name} on one device, found one of the CPU too")
        return value

    given = dict(zip((argument.name for argument in operation._schema.arguments), args, strict=False)) | kwargs
    for argument in operation._schema.arguments:
        if argument.name in given:
            is_written = argument.alias_info is not None and argument.alias_info.is_write
            value = tree_map(partial(in_memory, is_written=is_written), given[argument.name])
            if str(argument.type) == "Tensor" and not isinstance(value, Tensor):  # which torch has made a number of
                value = torch.tensor(value, device="cpu")
            given[argument.name] = value
    if name == "aten::as_strided" and given.get("storage_offset") is not None:
        given["storage_offset"] += given["self"].storage_offset()  # torch counts from where the tensor begins

    def on_the_device(memory: Any) -> Any:
        if not isinstance(memory, Tensor):
            return memory
        if id(memory) not in held:
            return _held(memory)
        tensor, _ = held[id(memory)]
        if tensor.shape != memory.shape:  # given as out=, and of another size before
            tensor.data = _held(memory)
        return tensor

    with torch.no_grad():
        results = operation(**given)
        for memory, whole in written:
            memory.copy_(whole)
        return tree_map(on_the_device, results)


def _copied(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    source, memory = (_memory_of(one) if one.device.type == NAME else one for one in (source, target))
    with torch.no_grad():
        memory.copy_(source)
    return target


def _empty(size: Any, dtype: Any = None, **others: Any) -> Tensor:
    return _held(torch.empty(size, dtype=dtype, device="cpu"))


def _empty_strided(size: Any, stride: Any, dtype: Any = None, **others: Any) -> Tensor:
    return _empty(size, dtype)


def _number(tensor: Tensor) -> Any:
    return _memory_of(tensor).item()


_libraries = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
_libraries[0].fallback(_computed, "PrivateUse1")
_libraries[1].impl("_copy_from", _copied, "PrivateUse1")
_libraries[1].impl("_local_scalar_dense", _number, "PrivateUse1")
_libraries[1].impl("empty.memory_format", _empty, "PrivateUse1")
_libraries[1].impl("empty_strided", _empty_strided, "PrivateUse1")
