"""The HTTP routes: one for each task, on a common base, and a module for each step of a request."""
