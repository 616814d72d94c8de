"""The precision of matrix products in training: "tf32" and "float32" of GPUs, "bfloat16" of CPUs too."""

import os
import re
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
import torch

from ppl_tvae.errors import UserError
from ppl_tvae.evaluation import evaluate
from ppl_tvae.inference.numpyro import device as jax_device
from ppl_tvae.inference.pyro import device as torch_device
from ppl_tvae.inference.pyro import onednn
from ppl_tvae.runs import Run
from ppl_tvae.seeds import train_seeds
from ppl_tvae.training import resume, train
from tests.small_runs import outcome, small_arguments, small_training

pytestmark = pytest.mark.machine_code

ON_A_GPU = ("tf32", "float32")
IN_BFLOAT16 = "the operands of products in bfloat16"
NEEDS_A_GPU = pytest.mark.skipif(
    os.environ.get("PPL_TVAE_GPU") != "1", reason="needs a GPU: PPL_TVAE_GPU=1 pytest tests/inference/test_device.py"
)


@pytest.mark.parametrize("before", ["highest", "medium"])
@pytest.mark.parametrize("matmul", ["tf32", "float32", "bfloat16"])
def test_torch_is_told_and_what_it_was_told_before_is_put_back(matmul, before):
    """A user may have set CPUs and GPUs together to "medium" before."""
    a = torch.randn(200, 200)
    torch.set_float32_matmul_precision("highest")
    product = a @ a
    torch.set_float32_matmul_precision(before)
    try:
        with torch_device.on_device("cpu", "float32", matmul):
            told, difference = torch_device.products_in_bfloat16(), float((a @ a - product).abs().max())
        assert torch.get_float32_matmul_precision() == before
    finally:
        torch.set_float32_matmul_precision("highest")
    assert difference == pytest.approx(0, abs=1e-4) or matmul == "bfloat16"
    assert bool(told) == (matmul == "bfloat16")
    assert (1e-3 < difference < 1) == told.endswith(IN_BFLOAT16)
    with torch_device.products(matmul, "cuda"):
        assert torch.backends.cuda.matmul.allow_tf32 == (matmul == "tf32")
        assert torch.backends.cudnn.allow_tf32 == (matmul == "tf32")
    assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32  # torch's default


def test_several_gpus_are_neither_started_nor_warned_of_in_work_on_a_cpu(monkeypatch):
    """As torch does where it is asked to keep all random streams."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda *_: pytest.fail("started"))
    before = torch.get_rng_state()
    with torch_device.on_device("cpu", "float32"), torch_device.forked():
        torch.randn(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_torch_without_amx_is_heard_to_multiply_in_float32():
    """A library that is kept from AMX, as some systems keep it, says nothing of its own."""
    code = """
from ppl_tvae.inference.pyro.device import on_device, products_in_bfloat16
for precision in ("float32", "float64"):
    with on_device("cpu", precision, "bfloat16"):
        print(products_in_bfloat16())
"""
    setting = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}  # torch reads it once
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | setting, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        "called one by one, with products in float32, .* torch cannot use AMX here, .*\n\n", done.stdout
    )


@pytest.mark.parametrize("matmul", ["float32", "bfloat16"])
def test_steps_of_pyro_in_bfloat16_say_how_they_multiply(matmul, tmp_path, capsys):
    settings = {"matmul": matmul, "device": "cpu", "steps": 2, "log_every": 2, "evaluate_every": 2}
    train(small_training(tmp_path, "pyro", **settings), tmp_path / "run")
    ways = re.findall("^steps are called one by one, with (.*)", capsys.readouterr().err, re.MULTILINE)
    assert len(ways) == (matmul == "bfloat16")


@pytest.mark.parametrize(("matmul", "told"), [("tf32", "HIGH, HIGH"), ("float32", "HIGHEST, HIGHEST")])
def test_jax_is_told_in_the_compiled_program(matmul, told):
    """HIGH is tensorfloat32 on a GPU, where a card has it, and HIGHEST is float32 (`jax.lax.Precision`)."""
    with jax_device.products(matmul):
        program = jax.jit(lambda a: a @ a).lower(jnp.ones((2, 2))).as_text()
    assert f"precision = [{told}]" in program


def test_a_gpu_is_told_of_bfloat16_by_jax_and_refused_it_by_torch(monkeypatch):
    with jax_device.products("bfloat16"):
        lowered = jax.jit(lambda a: a @ a).trace(jnp.ones((2, 2))).lower(lowering_platforms=("cuda",))
    assert "lhs_precision_type = bf16, rhs_precision_type = bf16, accumulation_type = f32" in lowered.as_text()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    refused = pytest.raises(UserError, match="take --device cpu, tf32, or --backend numpyro")
    with refused, torch_device.on_device("cuda", "float32", "bfloat16"):
        pass


def test_options_of_a_step_on_a_gpu_are_known_to_this_xla():
    """On a CPU they change nothing, but an unknown one is refused there too."""
    lowered = jax.jit(lambda a: a @ a).lower(jnp.ones((2, 2)))
    assert lowered.compile(compiler_options=jax_device.STEP_OPTIONS)(jnp.ones((2, 2))).sum() == 8
    with pytest.raises(Exception, match="No such compile option"):
        lowered.compile(compiler_options={"xla_gpu_no_such_option": True})


def test_small_numbers_count_as_zero_in_torch_as_in_jax():
    """And not afterwards."""
    small = torch.tensor([1e-39, 1e-30])
    with torch_device.on_device("cpu", "float32"):
        assert (0.5 * small).tolist() == [0.0, pytest.approx(5e-31)]
    assert 0 < float(0.5 * small[0]) < 1e-38
    with torch_device.denormals_as_zero():
        with torch_device.denormals_as_zero():
            pass
        assert float(0.5 * small[0]) == 0
    with jax.default_device(jax.devices("cpu")[0]):
        assert float(jax.jit(lambda x: 0.5 * x)(small.numpy())[0]) == 0


@pytest.mark.filterwarnings("ignore:Out-of-support values")
def test_beyond_a_support_there_is_no_density_whatever_the_host_was_told():
    with numpyro.validation_enabled(False):
        with jax_device.on_device("cpu", "float32"):
            assert numpyro.distributions.Uniform(0.0, 1.0).log_prob(2.0) == -jnp.inf
        assert not numpyro.distributions.Distribution._validate_args


def test_two_seeds_at_once_and_a_learned_lattice_train_in_bfloat16(tmp_path, capsys):
    """Of the latter XLA cannot compute all products from bfloat16, and training says so; in float32 it says nothing."""
    settings = {"matmul": "bfloat16", "device": "cpu", "steps": 6, "log_every": 3, "evaluate_every": 3}
    experiment = small_training(tmp_path, "numpyro", lattice_weights="learned", **settings)

    def ways() -> list[str]:
        return re.findall("^steps are (.*)", capsys.readouterr().err, re.MULTILINE)

    together = train_seeds(experiment, 2, tmp_path / "together")
    alone = train(experiment, tmp_path / "alone")
    assert ["multiplied as float32" in way for way in ways()] == [True, True]
    train(replace(experiment, lattice_weights="fixed"), tmp_path / "fixed")
    assert ways() == ["compiled, with the operands of products in bfloat16"]
    float32 = train(replace(experiment, matmul="float32"), tmp_path / "float32")
    assert ways() == []
    elbos = [run.metrics()[-1]["elbo_per_frame"] for run in (together[0], alone, float32)]
    assert elbos[0] == pytest.approx(elbos[1], rel=1e-3)
    assert elbos[1] != elbos[2]
    assert elbos[1] == pytest.approx(elbos[2], rel=1e-2)


@pytest.mark.parametrize("backend", ["numpyro", "pyro"])
def test_on_a_cpu_tf32_is_float32_and_bfloat16_goes_on_bit_for_bit(backend, tmp_path):
    settings = {"device": "cpu", "steps": 6, "log_every": 3, "evaluate_every": 3, "hidden": (64,), "batch_size": 8}

    def trained(matmul: str, steps: int) -> Run:
        experiment = small_training(tmp_path, backend, matmul=matmul, **settings | {"steps": steps})
        return train(experiment, tmp_path / f"{matmul}-{steps}", quiet=True)

    tf32, float32, bfloat16 = (trained(matmul, 6) for matmul in ("tf32", "float32", "bfloat16"))
    assert outcome(tf32) == outcome(float32)
    assert outcome(resume(trained("bfloat16", 3).path, steps=6, quiet=True)) == outcome(bfloat16)
    # torch rounds where it can use AMX; elsewhere it may compute float32 in another order.
    with torch_device.products("bfloat16", "cpu"):
        torch_rounds = torch_device.products_in_bfloat16().endswith(IN_BFLOAT16)
    assert outcome(bfloat16) != outcome(float32) or (backend == "pyro" and not torch_rounds)
    last = [run.metrics()[-1]["elbo_per_frame"] for run in (float32, bfloat16)]
    assert last[0] == pytest.approx(last[1], rel=1e-2)


def product_of(x):
    return x @ x


def convolution_of(x):
    """16 images of 64 channels and 16 by 16 pixels with as many kernels of 3 by 3."""
    images, kernels = x.reshape(16, 64, 16, 16), x.reshape(-1)[: 64 * 64 * 9].reshape(64, 64, 3, 3)
    if isinstance(x, torch.Tensor):
        return torch.nn.functional.conv2d(images, kernels)
    return jax.lax.conv_general_dilated(images, kernels, (1, 1), "VALID")


@NEEDS_A_GPU
@pytest.mark.parametrize("compute", [product_of, convolution_of])
@pytest.mark.parametrize("backend", ["numpyro", "pyro"])
def test_products_on_a_gpu_are_as_exact_as_asked_for(backend, compute):
    """Against float64 on the host: float32 has 23 bits of mantissa, tf32 10, where the card has it (from Ampere on)."""
    a = np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32)
    exact, error = compute(torch.as_tensor(a, dtype=torch.float64)).numpy(), {}
    module = {"numpyro": jax_device, "pyro": torch_device}[backend]
    for matmul in ON_A_GPU:
        with module.on_device("cuda", "float32", matmul):
            x = jnp.asarray(a) if backend == "numpyro" else torch.as_tensor(a).cuda()
            found = np.asarray(compute(x)) if backend == "numpyro" else compute(x).cpu().numpy()
        error[matmul] = np.abs(found - exact).max() / np.abs(exact).max()
    assert error["float32"] < 1e-5
    assert 1e-5 < error["tf32"] < 1e-2 or torch.cuda.get_device_capability() < (8, 0)


@NEEDS_A_GPU
def test_numpyro_on_a_gpu_is_numpyro_on_a_cpu(tmp_path):
    """In float64: draws are a function of key and shape on any device. Two seeds at once as well."""
    settings = {"precision": "float64"}
    runs = [
        train(small_training(tmp_path, "numpyro", device=device, **settings), tmp_path / name, quiet=True)
        for name, device in (("host", "cpu"), ("gpu", "cuda"))
    ]
    together = train_seeds(
        small_training(tmp_path, "numpyro", device="cuda", **settings), 2, tmp_path / "s", quiet=True
    )
    expected, *found = (run.parameters() for run in (*runs, together[0]))
    for other in found:
        for name, value in expected.items():
            np.testing.assert_allclose(other[name], value, rtol=1e-6, atol=1e-8, err_msg=name)
    elbos = [evaluate(run, particles=(4,), device=run.experiment.device, quiet=True)[0]["value"] for run in runs]
    np.testing.assert_allclose(elbos[1], elbos[0], rtol=1e-6)


@NEEDS_A_GPU
@pytest.mark.parametrize("backend", ["numpyro", "pyro"])
def test_a_run_on_a_gpu_learns_goes_on_and_is_evaluated(backend, tmp_path):
    experiment = small_training(tmp_path, backend, device="cuda", steps=60, learning_rate=1e-2)
    run = train(experiment, tmp_path / "run", quiet=True)
    first, *_, last = (row["elbo_per_frame"] for row in run.metrics() if "elbo_per_frame" in row)
    assert last > first + 0.1
    assert resume(run.path, steps=80, quiet=True).checkpoint().step == 80
    for device in ("cuda", "cpu"):  # of other draws in Pyro
        (elbo,) = (r for r in evaluate(run, particles=(64,), device=device, quiet=True) if r["estimator"] == "elbo")
        assert abs(elbo["value"] - last) < 5 * elbo["standard_error"] + 0.5


needs_onednn = pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="torch has no oneDNN here")


def layers_and_gradients(precision, batch):
    """What a linear layer, a product of transposed matrices and torch.func.vmap give, and gradients through them."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(precision).requires_grad_()
        for shape in ((batch, 9, 200), (150, 200), (150,))
    )
    layer = torch.nn.functional.linear(x, weight, bias)
    across = layer.reshape(-1, 150).t() @ x.reshape(-1, 200)
    mapped = torch.func.vmap(lambda own: torch.addmm(bias, own, weight.t(), beta=0.5, alpha=2.0))(x)
    total = layer.square().sum() + across.square().sum() + mapped.square().sum()
    return [layer, across, mapped, *torch.autograd.grad(total, (x, weight, bias))]


@needs_onednn
@pytest.mark.parametrize("batch", [1, 40])
def test_products_by_onednn_are_those_of_torch(batch):
    """Of 1 sequence they are too small for it, of 40 they are not."""
    exact = layers_and_gradients(torch.float64, batch)
    before = layers_and_gradients(torch.float32, batch)
    with onednn.by_onednn():
        ours, again = layers_and_gradients(torch.float32, batch), layers_and_gradients(torch.float32, batch)
        double = layers_and_gradients(torch.float64, batch)
    after = layers_and_gradients(torch.float32, batch)
    for true, mine, repeated, theirs, put_back, in_double in zip(
        exact, ours, again, before, after, double, strict=True
    ):
        scale = true.abs().max()
        assert (mine - true).abs().max() < 3e-6 * scale
        assert (in_double - true).abs().max() < 1e-13 * scale
        assert torch.equal(mine, repeated)
        assert torch.equal(theirs, put_back)


@needs_onednn
def test_products_of_one_context_do_not_outlive_another(monkeypatch):
    monkeypatch.setattr(torch_device, "onednn_is_faster", lambda: True)
    a = torch.randn(200, 300, generator=torch.Generator().manual_seed(0))
    plain = a @ a.t()
    with torch_device.on_device("cpu", "float32"):
        one = a @ a.t()
        with torch_device.on_device("cpu", "float32"):
            assert torch.equal(a @ a.t(), one)
        assert torch.equal(a @ a.t(), one)
    assert torch.equal(a @ a.t(), plain)
    torch.testing.assert_close(one, plain, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("said", "spins"), [({}, "3000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "passive"}, "0")]
)
def test_threads_of_torch_soon_sleep_while_they_wait(said, spins, tmp_path):
    """As its OpenMP says of itself, in the process of a command; what a user has said to it stays."""
    others = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, "-m", "ppl_tvae.cli", *small_arguments(tmp_path, "pyro", tmp_path / "run", steps=1)]
    done = subprocess.run(command, env=others | said | {"OMP_DISPLAY_ENV": "verbose"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = re.findall("GOMP_SPINCOUNT = '(.*)'", done.stderr)
    if not found:
        pytest.skip("torch has another OpenMP here than GNU's")
    assert set(found) == {spins}
