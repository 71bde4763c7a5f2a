"""Where a request goes: the cost, the load books and the router. No IO; the time is passed in."""
