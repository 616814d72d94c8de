"""log p(x, latents) - log q(latents | x) at given latents, by site name, each (batch, ...): (batch,), nats."""

from ppl_tvae.inference.numpyro import tracing as numpyro_tracing
from ppl_tvae.inference.pyro import tracing as pyro_tracing


def numpyro_log_weights_at(program, parameters, frames, latents):
    guide_trace, model_trace = numpyro_tracing.traces_at(program, parameters, frames, latents)
    return numpyro_tracing.log_joint(model_trace) - numpyro_tracing.log_joint(guide_trace)


def pyro_log_weights_at(program, parameters, frames, latents):
    with pyro_tracing.parameters_as(parameters):
        guide_trace, model_trace = pyro_tracing.traces_at(program, frames, latents)
        return pyro_tracing.log_joint(model_trace) - pyro_tracing.log_joint(guide_trace)
