"""The programs that run in a drill, and write down what they believe."""
