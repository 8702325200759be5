"""`jepa-kernels train`, `export` and `probe`: JEPA models, and the objectives to compare them with, from a folder of files."""
