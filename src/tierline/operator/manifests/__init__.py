"""What an endpoint is made of: pure functions from what it is to be to the objects of Kubernetes that make it."""
