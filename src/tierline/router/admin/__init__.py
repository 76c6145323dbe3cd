"""The operators' API on the router's own port: ``access`` says who may, ``documents`` what is said, ``api`` does it."""
