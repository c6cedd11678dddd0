"""Predictions at full size: what is cut, captured, placed, played and told."""
