"""Runtime: the driver loop and the pools that carry its commands out."""
