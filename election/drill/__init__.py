"""Drills: hurts a running system by a plan, writes down what each process believed, and judges that alone."""
