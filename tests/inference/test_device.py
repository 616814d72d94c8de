"""The precision of matrix products: a matter of GPUs, which a CPU must not notice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ppl_tvae.inference.numpyro import device as jax_device
from ppl_tvae.inference.pyro import device as torch_device
from ppl_tvae.training import train
from tests.small_runs import outcome, small_training

MATMUL = ("tf32", "float32")


@pytest.mark.parametrize("matmul", MATMUL)
def test_torch_is_told_for_gpus_alone_and_put_back(matmul):
    """torch.set_float32_matmul_precision, which is not used, changes what a CPU may do as well."""
    a, before = torch.randn(200, 200), torch.backends.cuda.matmul.allow_tf32
    on_cpu, product = torch.backends.mkldnn.matmul.fp32_precision, a @ a
    with torch_device.products_on_gpu(matmul):
        assert torch.backends.cuda.matmul.allow_tf32 == (matmul == "tf32")
        assert torch.backends.mkldnn.matmul.fp32_precision == on_cpu
        assert torch.equal(a @ a, product)
    assert torch.backends.cuda.matmul.allow_tf32 == before


@pytest.mark.parametrize(("matmul", "told"), [("tf32", "HIGH, HIGH"), ("float32", "HIGHEST, HIGHEST")])
def test_jax_is_told_in_the_compiled_program(matmul, told):
    """HIGH is tensorfloat32 on a GPU, where a card has it, and HIGHEST is float32 (`jax.lax.Precision`)."""
    with jax_device.products_on_gpu(matmul):
        program = jax.jit(lambda a: a @ a).lower(jnp.ones((2, 2))).as_text()
    assert f"precision = [{told}]" in program


@pytest.mark.parametrize("backend", ["numpyro", "pyro"])
def test_on_a_cpu_the_setting_changes_no_bit(backend, tmp_path):
    settings = {"device": "cpu", "steps": 5, "log_every": 5, "evaluate_every": 5}
    runs = [
        train(small_training(tmp_path, backend, matmul=matmul, **settings), tmp_path / matmul, quiet=True)
        for matmul in MATMUL
    ]
    assert outcome(runs[0]) == outcome(runs[1])


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU: python -m pytest tests/inference/test_device.py"
)
@pytest.mark.parametrize("backend", ["numpyro", "pyro"])
def test_products_on_a_gpu_are_as_exact_as_asked_for(backend):
    """Against float64 on the host: float32 has 23 bits of mantissa, tf32 10, where the card has it (from Ampere on)."""
    a = np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32)
    exact, error = a.astype(np.float64) @ a, {}
    module = {"numpyro": jax_device, "pyro": torch_device}[backend]
    for matmul in MATMUL:
        with module.on_device("cuda", "float32", matmul):
            x = jnp.asarray(a) if backend == "numpyro" else torch.as_tensor(a).cuda()
            product = np.asarray(x @ x) if backend == "numpyro" else (x @ x).cpu().numpy()
        error[matmul] = np.abs(product - exact).max() / np.abs(exact).max()
    assert error["float32"] < 1e-5
    assert 1e-5 < error["tf32"] < 1e-2 or torch.cuda.get_device_capability() < (8, 0)
