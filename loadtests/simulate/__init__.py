"""A simulator of the engine on a virtual clock, for scheduling policies, devices and loads of any kind."""
