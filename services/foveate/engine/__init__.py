"""Admit, take, run, settle: the queue and the loop between requests and a model."""
