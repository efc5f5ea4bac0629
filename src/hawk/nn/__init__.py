"""Neural network layers that targets and drafters share, and their packed form for CPUs."""
