"""float32 matrix products with operands in bfloat16, on a CPU.

JAX has a name for them, which can be asked for in a context (`jax.default_matmul_precision(BFLOAT16)`) and stands in
each product that is traced there. XLA does as it says on a GPU. On a CPU it multiplies in float32 or, in a few
products, refuses the name, though some CPUs have products of bfloat16.
"""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

# Operands are rounded to bfloat16, which has 7 bits of mantissa in place of 23; their products are summed in float32.
BFLOAT16 = "BF16_BF16_F32"

Rounding = Callable[[jax.Array], jax.Array]


class RoundedProducts:
    """`jax.jit` for a CPU, with matrix products (not convolutions) under the name BFLOAT16 as the name says.

    Each call waits for its results. Arguments are positional and stay the caller's; options: those of `jax.jit` that
    say where results are. `description` says how, after the words 'steps are'; it is empty before the first call.
    """

    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        self._fast = jax.jit(_rounding_operands(function, lambda operand: operand.astype(jnp.bfloat16)), **options)
        # XLA decides how a product is computed before it moves transpositions into it, and cannot compute some of those
        # that come of it from bfloat16 (jaxlib 0.8 to 0.11). From float32 it can.
        as_float32 = partial(jax.lax.reduce_precision, exponent_bits=8, mantissa_bits=7)
        self._slow = jax.jit(_rounding_operands(function, as_float32), **options)
        self._chosen, self.description = self._fast, ""

    def __call__(self, *arguments: Any) -> Any:
        tried = self._chosen
        try:
            results = jax.block_until_ready(tried(*arguments))
        except jax.errors.JaxRuntimeError as error:
            if tried is self._slow or "Unsupported element type for Dot" not in str(error):
                raise
            self._chosen = self._slow
            return self(*arguments)
        self.description = "compiled, with the operands of products in bfloat16"
        if tried is self._slow:
            self.description = (
                "compiled, with the operands of products rounded to bfloat16 and multiplied as float32, no faster than "
                "float32: XLA cannot compute all products of this program from bfloat16"
            )
        return results


def _rounding_operands(function: Callable[..., Any], rounding: Rounding) -> Callable[..., Any]:
    """rounding: of operands to bfloat16, in whichever dtype; what products give differs in the order of sums."""

    @wraps(function)
    def with_operands_rounded(*arguments: Any) -> Any:
        traced, result = jax.make_jaxpr(function, return_shape=True)(*arguments)
        values = _evaluate(rounding, traced, *jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(result), values)

    return with_operands_rounded


def _evaluate(rounding: Rounding, traced: core.ClosedJaxpr, *arguments: Any) -> list[Any]:
    """What a traced function computes, operation by operation, with the operands of products rounded."""
    jaxpr = traced.jaxpr
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*traced.consts, *arguments], strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, core.Literal) else values[variable]

    for equation in jaxpr.eqns:
        operands = [read(variable) for variable in equation.invars]
        with equation.ctx.manager:
            results = _results(rounding, equation, operands)
        values.update(zip(equation.outvars, results, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _results(rounding: Rounding, equation: Any, operands: list[Any]) -> list[Any]:
    primitive, parameters = equation.primitive, equation.params
    if primitive in _CALLS:
        return _evaluate(rounding, parameters["call_jaxpr"], *operands)
    if primitive is core.primitives.dot_general_p and _is_to_be_rounded(equation):
        # Without its name, as it does now what the name says.
        parameters = {**parameters, "precision": None, "preferred_element_type": jnp.dtype("float32")}
        return [primitive.bind(*(rounding(jnp.asarray(operand)) for operand in operands), **parameters)]
    parameters = {name: _with_products_rounded(rounding, value) for name, value in parameters.items()}
    bound = primitive.get_bind_params(parameters)
    functions, parameters = bound if isinstance(bound, tuple) else ((), bound)  # the former in JAX 0.8
    result = primitive.bind(*functions, *operands, **parameters)
    return list(result) if primitive.multiple_results else [result]


# Operations that only call a function, which is evaluated in their place; so are those with derivatives of their own,
# since these have been taken when a step has been traced.
_CALLS = (core.primitives.closed_call_p, core.primitives.custom_jvp_call_p, core.primitives.custom_vjp_call_p)


def _is_to_be_rounded(product: Any) -> bool:
    dtypes = {variable.aval.dtype for variable in (*product.invars, *product.outvars)}
    return product.params["precision"] is jax.lax.DotAlgorithmPreset[BFLOAT16] and dtypes == {jnp.dtype("float32")}


def _with_products_rounded(rounding: Rounding, value: Any) -> Any:
    """A parameter of an operation: the body of a loop or a branch, or several, or anything else, which is left."""
    if isinstance(value, core.ClosedJaxpr):
        return jax.make_jaxpr(partial(_evaluate, rounding, value))(*value.in_avals)
    if isinstance(value, core.Jaxpr):
        return _with_products_rounded(rounding, core.ClosedJaxpr(value, ())).jaxpr
    if isinstance(value, tuple):
        several = [_with_products_rounded(rounding, each) for each in value]
        return type(value)(*several) if hasattr(value, "_fields") else tuple(several)
    return value
