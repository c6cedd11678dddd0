"""What a profile shows: communication, how much of it was exposed, and what hid the rest."""
