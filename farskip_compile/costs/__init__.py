"""What operators and collectives cost, estimated without running anything."""
