"""`jepa-kernels train`, `export` and `probe`: I-JEPA, V-JEPA and V-JEPA 2 from a folder of images or videos."""
