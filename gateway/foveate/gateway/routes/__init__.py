"""The HTTP routes, one file for each task, on one base that defines the path of a request."""
