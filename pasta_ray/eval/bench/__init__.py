"""The engine's figures, each as medians and ratios of one run on a machine that is described beside them."""
