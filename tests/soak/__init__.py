"""``make soak``: honest load at a real Envoy and a real picker while clients, engines and neighbours misbehave."""
