"""Where the pool's endpoints come from: a file or Kubernetes."""
