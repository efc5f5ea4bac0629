"""Studies of the paper on a model at hand, each a plot and a JSON document: one module for a study or two kin ones."""
