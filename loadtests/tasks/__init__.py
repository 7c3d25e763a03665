"""What naming pixels and clips costs and keeps, and the promise on a mix of all tasks."""
