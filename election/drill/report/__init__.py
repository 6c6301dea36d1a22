"""What came of a drill: for people as a page and in a terminal, for programs as JSON."""

from election.drill.report.figures import Figures
from election.drill.report.page import write_page
from election.drill.report.terminal import print_report

__all__ = ["Figures", "print_report", "write_page"]
