"""Envoy Gateway's extension service: it makes an HTTPRoute work whose backend is an InferencePool."""
