"""Workers on Ray Serve, their metrics, and the scaling policy that Ray Serve calls."""
