"""The laboratory of Warmroute: simulator, load generators, replay, overhead benchmarks and the demo.

It imports the product (:mod:`warmroute`); the product never imports it.
"""
