"""Array kernels in NumPy, OpenCV and numba; nothing here knows files, data sets or torch."""
