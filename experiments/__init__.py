"""Commands: run, evaluate, render, plot.  `python -m experiments.run --help`."""
