"""Plain Mixture-of-Experts models and their hand-written FarSkip forms."""
