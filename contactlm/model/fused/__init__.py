"""Contact attention as one fused operation of Triton kernels, for GPUs."""
