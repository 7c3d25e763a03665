"""Workers on Ray Serve, and the scaling policy that Ray Serve calls."""
