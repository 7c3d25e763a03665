"""The elastic vision transformer, plan resolution, its cost in FLOPs, and stitching of siblings."""
