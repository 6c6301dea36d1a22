"""What can be done to a system in a drill, each by its name."""
