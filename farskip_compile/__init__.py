"""farskip-compile: `torch.compile(model, backend="farskip")` for Mixture-of-Experts models."""
