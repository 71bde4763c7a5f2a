"""The endpoints that can be chosen, what is known of them, and the models that they serve."""
