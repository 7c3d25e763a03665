"""One short server per file, each tuned to the deadline as its documentation allows."""
