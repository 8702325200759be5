"""What compiled kernels need, told without a GPU: registers, shared memory, spills, occupancy and instructions."""
