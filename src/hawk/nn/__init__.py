"""Neural network layers that several models and drafters share, and their packed form for CPUs."""
