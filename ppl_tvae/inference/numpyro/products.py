"""float32 matrix products with operands in bfloat16, on a CPU.

JAX has a name for them, which can be asked for in a context (`jax.default_matmul_precision(BFLOAT16)`) and stands in
each product of a traced function. XLA follows it on a GPU. On a CPU it does not, though some CPUs have such products.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

# Operands are rounded to bfloat16, which has 7 bits of mantissa in place of 23; their products are summed in float32.
BFLOAT16 = "BF16_BF16_F32"


def jit_rounding_operands(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`jax.jit` for a CPU, with products under the name BFLOAT16 as the name says; options as there.

    Keyword arguments are not taken. Raises JaxRuntimeError as other compiled functions do.
    """
    compiled = jax.jit(_rounding_operands(function, jnp.bfloat16), **options)
    # XLA decides how a product is computed before it moves transpositions into it, and cannot compute some of those
    # that come of it from bfloat16 (jaxlib 0.10; of our programs, those of a learned lattice). From float32 it can.
    slower = jax.jit(_rounding_operands(function, jnp.float32), **options)

    @wraps(function)
    def run(*arguments: Any) -> Any:
        nonlocal compiled
        try:
            return jax.block_until_ready(compiled(*arguments))
        except jax.errors.JaxRuntimeError as error:
            if compiled is slower or "Unsupported element type for Dot" not in str(error):
                raise
        compiled = slower
        return compiled(*arguments)

    return run


def _rounding_operands(function: Callable[..., Any], dtype: Any) -> Callable[..., Any]:
    """dtype: in which products take the rounded operands; what they give differs in the order of sums."""

    @wraps(function)
    def rounding(*arguments: Any) -> Any:
        traced, result = jax.make_jaxpr(function, return_shape=True)(*arguments)
        values = _evaluate(dtype, traced, *jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(result), values)

    return rounding


def _evaluate(dtype: Any, traced: core.ClosedJaxpr, *arguments: Any) -> list[Any]:
    """What a traced function computes, operation by operation, with the operands of products rounded."""
    jaxpr = traced.jaxpr
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*traced.consts, *arguments], strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, core.Literal) else values[variable]

    for equation in jaxpr.eqns:
        primitive, operands = equation.primitive, [read(variable) for variable in equation.invars]
        if primitive in _CALLS:
            results = _evaluate(dtype, equation.params["call_jaxpr"], *operands)
        elif primitive is core.primitives.dot_general_p:
            results = [_product(dtype, operands, equation.params)]
        else:
            parameters = {name: _with_products_rounded(dtype, value) for name, value in equation.params.items()}
            result = primitive.bind(*operands, **parameters)
            results = result if primitive.multiple_results else [result]
        values.update(zip(equation.outvars, results, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


# Operations that only call a function, which is evaluated in their place; so are those with derivatives of their own,
# since these have been taken when a step has been traced.
_CALLS = (core.primitives.closed_call_p, core.primitives.custom_jvp_call_p, core.primitives.custom_vjp_call_p)


def _product(dtype: Any, operands: Sequence[Any], parameters: Mapping[str, Any]) -> Any:
    """A product as its parameters have it, with operands rounded if they ask for that; its type stays what it was."""
    if str(parameters["precision"]) == BFLOAT16 and parameters["preferred_element_type"] == jnp.float32:
        operands = [operand.astype(jnp.bfloat16).astype(dtype) for operand in operands]
        parameters = {**parameters, "precision": None}  # what XLA does with the name on a CPU is not always nothing
    return core.primitives.dot_general_p.bind(*operands, **parameters)


def _with_products_rounded(dtype: Any, value: Any) -> Any:
    """A parameter of an operation: the body of a loop or a branch, or several, or anything else, which is left."""
    if isinstance(value, core.ClosedJaxpr):
        return jax.make_jaxpr(partial(_evaluate, dtype, value))(*value.in_avals)
    if isinstance(value, core.Jaxpr):
        return _with_products_rounded(dtype, core.ClosedJaxpr(value, ())).jaxpr
    if type(value) is tuple:
        return tuple(_with_products_rounded(dtype, each) for each in value)
    return value
