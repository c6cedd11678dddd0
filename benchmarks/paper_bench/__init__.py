"""AMD's published figures for FarSkip, and what `farskip_compile.simulate` predicts for the same settings."""
