"""Judges the history of a drill, and nothing else."""
