"""Where a request goes: endpoint load, cost, strategies and the router. WITHOUT IO: the time is passed in."""
