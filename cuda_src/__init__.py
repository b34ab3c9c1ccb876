"""CUDA C sources of cudakit, installed as `cudakit.cuda_src` and compiled at run time."""
