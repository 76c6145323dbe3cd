"""What a Kubernetes cluster says of who is there: its API, followed, and EndpointSlices as they are read."""
