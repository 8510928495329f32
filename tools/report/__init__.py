"""A page that compares runs: python -m tools.report RUNS..."""
