"""AMD's published figures for FarSkip, next to what `farskip_compile.simulate` predicts for the same settings.

published -> predicted -> page
"""
