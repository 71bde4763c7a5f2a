"""Scrapes of the inference engines: their metrics pages and lists of models, and the state that follows from them."""
