"""The HTTP server below the application: the protocol on one connection, and the limits on all of them."""
