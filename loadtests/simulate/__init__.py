"""The engine's policy on a virtual clock: what it would do on machines and loads that are not at hand."""
