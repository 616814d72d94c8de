"""What can be named on the command line, with one line each. Importing it imports neither torch nor jax."""

BACKENDS = {
    "numpyro": "NumPyro on JAX: many training steps are one compiled call",
    "pyro": "Pyro on PyTorch",
}

MODELS = {
    "tvae": "topographic VAE, shifting coherence: capsules that roll by one position per frame share variance",
    "bubble": "topographic VAE, stationary coherence: a block of time x space shares variance and does not move",
    "static": "topographic VAE without temporal coherence: neighbours in space share variance",
    "torus": "topographic VAE of single frames on a 2-D torus of cells (the paper's figure 3)",
    "vae": "plain VAE, t = z",
}

GUIDES = {
    "mean-field": "the paper's: diagonal normals q(z | x_s) q(u | x_s), an encoder each, frame by frame",
    "smoother": "diagonal normals that also see the frames which share variance with theirs through W",
    "low-rank": "normals with a covariance of rank 4 plus a diagonal within each capsule",
    "iaf": "two inverse autoregressive flows over the positions of each capsule, given the frame",
    "mixture": "for each capsule and frame a mixture of 4 diagonal normals, with implicit gradients",
}

AUTO_GUIDES = {
    "auto-normal": "the host's diagonal normal, fitted to each sequence alone, for evaluate --guide",
    "auto-low-rank": "the host's low-rank normal over all latents of a sequence, fitted to each alone",
}

PRIORS = {
    "normal": "the paper's: independent standard normals",
    "laplace": "independent Laplace of variance 1: sharper at zero, heavier tails",
    "student-t": "independent Student-t of 5 degrees of freedom and variance 1: heavier tails still",
    "student-t-learned": "independent Student-t of scale 1 whose degrees of freedom are learned, one number a latent",
    "mixture": "each cell a mixture of 4 normals, learned, shared by the cells of a latent",
    "vamp": "a frame's latent is a mixture of the mean-field encoder's normals at 32 learned frames",
    "hyperspherical": "each capsule uniform on the unit sphere; the guide of that latent is power spherical",
}

LIKELIHOODS = {
    "bernoulli": "binary pixels, a probability; grey pixels are binarised at random, anew in each step",
    "bernoulli-grey": "grey pixels, the paper's cross-entropy: not a normalised density, compare only with itself",
    "continuous-bernoulli": "grey pixels, a density on [0, 1]",
    "normal": "grey pixels, a density: mean sigmoid(logits), one learned scale",
}

OWN_LIKELIHOODS = {
    "own-density": "of your own program: grey pixels, a density that it writes, such as Beta",
    "own-probability": "of your own program: grey pixels, the probability of each level, such as a Categorical's",
}

OBJECTIVES = {
    "elbo": "the evidence lower bound of each sequence, with analytic KL divergences where they exist",
    "iwae": "log of the mean of K importance weights of each sequence: tighter, but noisier for the guide as K grows",
    "iwae-dreg": "the bound of iwae with its doubly reparameterised gradient, whose noise does not grow with K",
    "renyi": "the variational Renyi bound of each sequence: alpha 0 is iwae, 1 is elbo, K importance weights",
}

OPTIMIZERS = {
    "adam": "Adam, learning rate 1e-3 unless given: learns within a few thousand steps",
    "sgd": "SGD with momentum, learning rate 1e-4 unless given: the paper's, needs hundreds of thousands of steps",
}

SCHEDULES = {
    "constant": "the learning rate stays",
    "cosine": "the learning rate falls to zero over the run, along half a cosine",
    "tripling": "eight stages, each three times as long as the last, its rate 10**(-1/7) of the last: the IWAE paper's",
}

ESTIMATORS = {
    "elbo": "mean over sequences of log w: a lower bound of log p(x)",
    "iwae": "mean over sequences of logsumexp of K log weights, minus log K: a lower bound that rises with K",
    "log-evidence": "log of the mean weight, its bias removed by the jackknife: no bound, of use where k-hat is small",
    "ais": "annealed importance sampling with HMC moves: a stochastic lower bound, the tightest of these",
    "sandwich": "ais forwards and backwards on data simulated from the model: brackets log p(x) from both sides",
    "released-is": "the released code's score per frame without - log K: no bound, for comparison with the paper only",
}

KINDS: dict[str, dict[str, str]] = {
    "backend": BACKENDS,
    "model": MODELS,
    "guide": GUIDES,
    "automatic guide": AUTO_GUIDES,
    "prior": PRIORS,
    "likelihood": LIKELIHOODS | OWN_LIKELIHOODS,
    "objective": OBJECTIVES,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "estimator": ESTIMATORS,
}
