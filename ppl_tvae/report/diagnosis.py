"""The report's sections on what `diagnose` found in one run."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ppl_tvae.diagnostics.calibration import PROBABILITY
from ppl_tvae.diagnostics.convergence import NOT_BELIEVABLE
from ppl_tvae.diagnostics.predictive import FEWEST_DRAWS
from ppl_tvae.figures import diagnosis_charts
from ppl_tvae.inference.reliability import khat_limit
from ppl_tvae.report.page import Picture, Section, Table, Warning, with_error
from ppl_tvae.runs import Run


def diagnosis_sections(run: Run) -> list[Section]:
    """One section for each part of diagnosis.json that is there."""
    found = run.present_diagnosis()
    charts = diagnosis_charts(found)
    sections = []
    for heading, key, parts in (
        ("Can the guide's draws be reweighted?", "posterior", _weights),
        ("How much do the latents say?", "rates", _rates),
        ("Is the guide calibrated?", "calibration", _calibration),
        ("Does the code roll, by transform?", "by_transform", _by_transform),
        ("Do replicated frames look like the observed ones?", "predictive_checks", _predictive_checks),
        ("Are the guide's draws, over all data, those of the prior?", "prior_ranks", _prior_ranks),
        ("How much does the prior count?", "power_scaling", _power_scaling),
    ):
        if found.get(key) and (shown := parts(found[key], charts)):
            sections.append(Section(f"{heading} {run.name}", shown))
    if {"mcmc", "amortisation_gap"} & set(found):
        sections.append(_fit(run))
    return sections


def _fit(run: Run) -> Section:
    """The guide against MCMC, and against a guide fitted to each sequence."""
    found, parts = run.present_diagnosis(), list[Any]()
    if mcmc := found.get("mcmc"):
        verdicts = [each["verdict"] for each in mcmc["convergence"].values()]
        doubted = not verdicts or any(verdict.startswith(NOT_BELIEVABLE) for verdict in verdicts)
        parts.append(Warning(f"{run.name}: {mcmc['verdict']}.") if doubted else f"{mcmc['verdict']}.")
        caption = (
            f"{mcmc['kernel']}: {mcmc['num_chains']} chains of {mcmc['num_draws']} draws on {mcmc['num_sequences']} "
            f"sequences; a cell in the middle of all (median), R-hat also at 90 %. Difference of means: guide minus "
            f"MCMC, in standard deviations, root mean square with the noise taken away. Ratio of scales: guide / MCMC."
        )
        header = ("quantity", "R-hat", "at 90 %", "effective draws", "difference", "ratio", "MCMC", "the guide")
        rows = [[name, *_against(each, mcmc["guide"][name])] for name, each in mcmc["convergence"].items()]
        parts += [Table(caption, header, rows, (6, 7))] if rows else []
    if gap := found.get("amortisation_gap"):
        value = f"{with_error(gap['value'], gap['standard_error'])} {gap['unit']}"
        parts.append(
            f"A guide of the family {gap['guide_name']} was fitted to each of {gap['num_sequences']} sequences in "
            f"{gap['guide_steps']} steps; its ELBO minus that of the run's own is {value} (paired): {gap['verdict']}."
        )
    return Section(f"How far is the guide from the posterior? {run.name}", parts)


def _against(judged: Mapping[str, Any], compared: Mapping[str, Any]) -> list[str]:
    numbers = [*judged.get("rhat_quantiles", ("-",) * 3)[1:], judged.get("ess_quantiles", ("-",) * 3)[1]]
    numbers.append(compared.get("difference_beyond_noise", "-"))
    numbers.append(compared.get("ratio_of_scales_quantiles", ("-",) * 3)[1])
    return [*map(str, numbers), judged["verdict"], compared["verdict"]]


def _weights(found: Mapping[str, Any], charts: Mapping[str, bytes]) -> list[Any]:
    if "khat" not in charts:  # where one is not known
        return [found["verdict"]]
    num_draws = found["num_draws"]
    caption = (
        f"Pareto k-hat of the importance weights of {num_draws} draws of the guide, one point a sequence. Above "
        f"{khat_limit(num_draws):.2g} so few do not become draws of the posterior by reweighting, above 0.7 no "
        f"practical number does."
    )
    return [Picture(charts["khat"], caption), found["verdict"]]


def _rates(found: list[Mapping[str, Any]], charts: Mapping[str, bytes]) -> list[Any]:
    rows = [[own["latent"], _measured(own)] for own in found]
    caption = (
        "Rate: KL divergence of the guide from the prior, nats per frame ± standard error over sequences. The ELBO is "
        "the expected log p(x | latents) minus the rate of all latents."
    )
    return [Table(caption, ("latent", "rate"), rows)]


def _calibration(found: Mapping[str, Any], charts: Mapping[str, bytes]) -> list[Any]:
    count = len(next(iter(found.values()))["ranks"])
    caption = (
        f"Simulation-based calibration on {count} sequences drawn from the model: the true value's rank among draws of "
        f"the guide. A calibrated guide stays in the grey band ({PROBABILITY:.0%}, simultaneous)."
    )
    rows = [[name, own["verdict"]] for name, own in found.items()]
    table = Table("one random cell of each site, and the log-likelihood", ("quantity", "verdict"), rows, (1,))
    return [Picture(charts["calibration"], caption), table]


_COLUMNS = {
    "capsule_correlation_pooled": "CapCorr, pooled",
    "capsule_correlation_pooled_of_prior": "of prior draws",
    "capsule_correlation_per_capsule": "CapCorr, per capsule",
    "capsule_correlation_per_capsule_of_prior": "of prior draws",
    "image_error_rolled": "image error, rolled",
    "image_error_not_rolled": "not rolled",
    "image_error_rolled_minus_not_rolled": "difference",
    "image_error_mean_frame": "mean frame",
}


def _by_transform(found: list[Mapping[str, Any]], charts: Mapping[str, bytes]) -> list[Any]:
    rows = [
        [own["transform"], str(own["num_sequences"]), *(_measured(own[column]) for column in _COLUMNS)] for own in found
    ]
    caption = (
        "value ± standard error over sequences (CapCorr: jackknife). CapCorr takes the first time at which the moving "
        "factor is at its first value; pooled is of the most frequent roll over capsules"
    )
    return [
        Table(caption, ("transform", "sequences", *_COLUMNS.values()), rows),
        "Beside each CapCorr stands that of codes drawn from the prior, which have seen no frames: a W that rolls "
        "makes any code roll. Only a CapCorr above that is evidence of what was learned. The mean frame of training "
        "sequences is had without a code: a rolled error that is not below its own has shown a blur, and a code at "
        "rest may be worse than it.",
    ]


def _measured(found: Mapping[str, float | None]) -> str:
    return "-" if found["value"] is None else with_error(found["value"], found["standard_error"])


def _predictive_checks(found: list[Mapping[str, Any]], charts: Mapping[str, bytes]) -> list[Any]:
    num_draws = len(found[0]["replicated"])
    caption = (
        f"Each statistic of {num_draws} replicated data sets (histogram; pixels drawn from the likelihood) and of the "
        "observed one (line), averaged over sequences. Left: latents from the guide given these frames. Right: latents "
        "from the prior. Orange where p is extreme."
    )
    header = ("replicates", "statistic", "observed", "replicated, mean", "p-value", "extreme sequences", "what it is")
    rows = [
        [
            own["replicates"],
            own["statistic"].replace("_", " "),
            f"{own['observed']:.4g}",
            f"{np.mean(own['replicated']):.4g}",
            f"{own['p_value']:.3f}",
            f"{own['extreme_sequences']:.0%}" if num_draws >= FEWEST_DRAWS else "-",
            f"{own['meaning']} ({own['unit']})",
        ]
        for own in found
    ]
    words = (
        "p is the share of replicated data sets with at least the observed value. Near 0 the observed value is higher "
        "than the model makes it, near 1 lower: the model, with this guide, hardly produces such frames. Posterior "
        "p-values are conservative, since the latents have seen the frames: a middling one is no proof of fit. Of "
        "grey frames that a program observes as if they were zeros and ones (bernoulli-grey), p compares the two "
        "scales, not the fit."
    )
    few = f"With fewer than {FEWEST_DRAWS} draws no p-value can be extreme." if num_draws < FEWEST_DRAWS else ""
    table = Table("Bayesian p-values", header, rows, (1, 6))
    return [part for part in (Picture(charts["predictive_checks"], caption), words, few, table) if part]


def _prior_ranks(found: Mapping[str, Any], charts: Mapping[str, bytes]) -> list[Any]:
    caption = (
        "The guide's draws for observed sequences, as ranks among draws of the prior, pooled over cells. On the zero "
        "line the sites, over all data, are distributed as their prior. Above zero on the left and below on the right: "
        "wider than the prior; the other way round: narrower. Cells are not independent, so there is no band."
    )
    return [Picture(charts["prior_ranks"], caption)]


def _power_scaling(found: list[Mapping[str, Any]], charts: Mapping[str, bytes]) -> list[Any]:
    rows = [
        [own["quantity"]]
        + [
            _measured({"value": own[part], "standard_error": own[f"{part}_standard_error"]})
            for part in ("prior", "likelihood")
        ]
        for own in found
    ]
    words = (
        "How fast each summary's distribution moves when the prior, or the likelihood, is raised to a power near 1 "
        "(Kallioinen et al. 2024), the guide's draws standing for the posterior's. Log densities of many "
        "latents vary by many nats, which puts these numbers far above the 0.05 that is usual for few parameters: "
        "compare prior with likelihood and run with run, and take no number alone."
    )
    return [words, Table("power-scaling sensitivity, mean over sequences", ("summary", "prior", "likelihood"), rows)]
