"""The pool: its endpoints, the last reported state of each, and the models that they serve."""
