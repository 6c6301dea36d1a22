"""Judges the history of a drill, and nothing else."""

from election.drill.checker.judge import check
from election.drill.checker.verdict import State, Verdict, all_held
from election.drill.checker.violation import Violation

__all__ = ["State", "Verdict", "Violation", "all_held", "check"]
