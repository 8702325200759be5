"""The public functions: each checks its arguments, applies autocast, and calls its operator. One file an operator."""
