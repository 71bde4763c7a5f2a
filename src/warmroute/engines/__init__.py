"""What the inference engines tell of themselves on their metrics pages."""
