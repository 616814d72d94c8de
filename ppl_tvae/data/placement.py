"""Where new arrays go, for code written once against the array API."""

from typing import Any

from array_api_compat import device, is_torch_array


def beside(like: Any) -> dict[str, Any]:
    """Keyword arguments that create an array on the device of `like`.

    Only torch needs them: NumPy has one device, and JAX moves fresh arrays itself (its tracers have no device to name).
    """
    return {"device": device(like)} if is_torch_array(like) else {}
