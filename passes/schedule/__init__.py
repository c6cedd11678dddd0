"""Order compute and collectives so that these overlap: on the graph (`graph`), then on kernels (`kernels`)."""
