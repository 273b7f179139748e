"""Global and local latents together: the ELBO of a whole data set and its maximisation."""
