"""Media behind URLs: which ones may be fetched, and the guarded fetcher."""
