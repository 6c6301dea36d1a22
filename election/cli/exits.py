"""The exit codes. 2 is click's own, for usage."""

OK = 0
ERROR = 1
NOBODY_LEADS = 3
LOST = 4
INTERRUPTED = 130
