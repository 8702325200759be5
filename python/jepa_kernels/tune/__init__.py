"""`jepa-kernels tune`: tiles of the attention kernels, timed on the GPU that they are for, into its architecture's table."""
