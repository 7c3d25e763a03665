"""One short server a file, each tuned to the promise as its documentation allows. Run by `..starting`."""
