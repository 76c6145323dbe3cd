"""The page at ``/dashboard``: what the router does, live, and a box to try it with."""
