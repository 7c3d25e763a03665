"""Scheduling policies. Pure: queued requests, a latency model and a clock in; decisions out."""
