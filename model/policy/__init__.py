"""Policy optimisation of the generative recommender: losses on log-probabilities and advantages, no sampling and no reward here."""
