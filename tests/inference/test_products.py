"""bfloat16 products of float32 operands on a CPU: what is rounded, and what is not."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from ppl_tvae.inference.numpyro.device import jit_step, on_device

pytestmark = pytest.mark.machine_code

MESH = Mesh(np.asarray(jax.devices("cpu")[:1]), ("a",))
X, Y = (np.random.default_rng(seed).standard_normal((5, 6, 6)).astype(np.float32) for seed in (0, 1))


def rounded(array: np.ndarray) -> np.ndarray:
    """To 8 significant bits, ties to even, as float64: products of two of these are exact in float32."""
    mantissa, exponent = np.frexp(array.astype(np.float64))
    return np.ldexp(np.round(mantissa * 256) / 256, exponent)


def in_bfloat16(function: Callable[..., Any], *arguments: Any, precision: str = "float32") -> Any:
    with on_device("cpu", precision, "bfloat16"):
        return jax.tree.map(np.asarray, jit_step(function)(*arguments))


def close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)


def test_operands_are_rounded_and_sums_are_not():
    found = in_bfloat16(lambda x, y: x @ y, X, Y)
    close(found, rounded(X) @ rounded(Y))
    assert np.abs(found - X @ Y).max() > 1e-3


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda x, y: lax.dot_general(x, y, (((2,), (1,)), ((0,), (0,)))),
        lambda x, y: jnp.stack([lax.dot(*pair) for pair in zip(x, y, strict=True)]),
        jax.jit(lambda x, y: x @ y),
        jax.vmap(lambda x, y: x @ y),
        jax.checkpoint(lambda x, y: x @ y),
        lambda x, y: lax.fori_loop(0, 5, lambda i, out: out.at[i].set(x[i] @ y[i]), jnp.zeros_like(x)),
        lambda x, y: lax.scan(lambda _, pair: (None, pair[0] @ pair[1]), None, (x, y))[1],
        lambda x, y: lax.cond(x[0, 0, 0] < 9, lambda: x @ y, lambda: jnp.zeros_like(x)),
        lambda x, y: jax.nn.relu(x @ y) - jax.nn.relu(-(x @ y)),
        lambda x, y: jax.shard_map(lambda x, y: x @ y, mesh=MESH, in_specs=P("a"), out_specs=P("a"))(x, y),
    ],
    ids=["lax", "lax.dot", "jit", "vmap", "checkpoint", "loop", "scan", "branch", "derivative of its own", "shard_map"],
)
def test_so_are_they_wherever_a_product_stands(wrapped):
    close(in_bfloat16(wrapped, X, Y), rounded(X) @ rounded(Y))


@pytest.mark.parametrize("wrapper", [jax.jit, jax.checkpoint, lambda product: product], ids=["jit", "checkpoint", "-"])
def test_the_products_of_a_gradient_too(wrapper):
    """d/dx of sum(g * (x y)) is g y^T, each of them rounded."""
    product, g = wrapper(lambda x, y: x @ y), X[::-1].copy()
    found = in_bfloat16(jax.grad(lambda x, y, g: jnp.sum(g * product(x, y))), X, Y, g)
    close(found, rounded(g) @ rounded(Y).swapaxes(1, 2))


def test_a_product_within_a_solver_too():
    """`custom_linear_solve` holds its functions in a named tuple. The solution is a product of matrices here."""
    found = in_bfloat16(lambda x, y: lax.custom_linear_solve(lambda v: v, y, lambda _, b: x @ b), X, Y)
    close(found, rounded(X) @ rounded(Y))


def test_a_scalar_may_be_an_operand():
    found = in_bfloat16(lambda x: lax.dot_general(x, jnp.float32(1.0 + 2**-9), (((), ()), ((), ()))), X)
    close(found, rounded(X))


def test_a_product_that_asks_for_more_gets_it():
    close(in_bfloat16(lambda x, y: jnp.matmul(x, y, precision="highest"), X, Y), X @ Y)


def test_nothing_is_rounded_in_float64_or_when_not_asked_for():
    exact = in_bfloat16(lambda x, y: x @ y, X.astype(float), Y.astype(float), precision="float64")
    np.testing.assert_allclose(exact, X.astype(float) @ Y.astype(float), rtol=1e-13, atol=1e-13)
    with on_device("cpu", "float32", "float32"):
        close(np.asarray(jit_step(lambda x, y: x @ y)(X, Y)), X @ Y)


def test_what_is_returned_keeps_its_structure():
    found = in_bfloat16(lambda tree, count: {"sum": tree["x"] + count, "both": (tree["x"], count)}, {"x": X}, 3)
    assert set(found) == {"sum", "both"}
    assert found["both"][1] == 3
    np.testing.assert_array_equal(found["sum"], X + 3)


WIDE = np.random.default_rng(2).standard_normal((64, 64)).astype(np.float32)


def of_a_transposed(x: jax.Array, y: jax.Array) -> jax.Array:
    return jax.nn.relu(x.T) @ y


def test_what_xla_cannot_compute_from_bfloat16_is_computed_from_rounded_float32():
    expected = rounded(np.maximum(WIDE.T, 0)) @ rounded(WIDE)
    np.testing.assert_allclose(in_bfloat16(of_a_transposed, WIDE, WIDE), expected, rtol=2e-5, atol=2e-5)
    gradient = jax.grad(lambda x, y: jnp.sum(of_a_transposed(x, y) * y))
    expected = ((WIDE.T > 0) * (rounded(WIDE) @ rounded(WIDE).T)).T
    np.testing.assert_allclose(in_bfloat16(gradient, WIDE, WIDE), expected, rtol=2e-5, atol=2e-5)


def test_rounded_float32_is_a_way_of_its_own(monkeypatch):
    """The other way, where XLA can take the first: chosen for good once XLA has refused."""
    refused = []

    def refusing(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        compiled = jit(function, **options)

        def run(*arguments: Any) -> Any:
            if "bf16" in str(jax.make_jaxpr(function)(*arguments)):
                refused.append(True)
                raise jax.errors.JaxRuntimeError("UNIMPLEMENTED: Unsupported element type for DotThunk")
            return compiled(*arguments)

        return run

    jit = jax.jit
    monkeypatch.setattr(jax, "jit", refusing)
    with on_device("cpu", "float32", "bfloat16"):
        product = jit_step(lambda x, y: x @ y)
        for _ in range(2):
            close(np.asarray(product(X, Y)), rounded(X) @ rounded(Y))
            assert "multiplied as float32, no faster than float32" in product.description
    assert len(refused) == 1


def test_other_errors_of_compiled_functions_stay_what_they_are():
    def fails(_: np.ndarray) -> np.ndarray:
        raise ValueError("of its own")

    result = jax.ShapeDtypeStruct(X.shape, X.dtype)
    with pytest.raises(jax.errors.JaxRuntimeError, match="of its own"):
        in_bfloat16(lambda x: jax.pure_callback(fails, result, x), X)
