"""Models in the styles of those that others write by hand, and their FarSkip forms, also by hand."""
