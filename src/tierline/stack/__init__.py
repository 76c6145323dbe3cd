"""One machine's stack: engines, the model they serve, and the supervisor that runs them with store and router."""
