// Products with codes of 1 bit.
#include "few.cuh"
#include "gemm.cuh"

BL_KERNEL(bl_w1_few8, FEW_THREADS, 2, const __grid_constant__ Product p) { few<1, false, 1>(p); }
BL_KERNEL(bl_w1_few16, FEW_THREADS, 2, const __grid_constant__ Product p) { few<1, false, 2>(p); }
BL_KERNEL(bl_w1_few32, FEW_THREADS, 2, const __grid_constant__ Product p) { few<1, false, 4>(p); }
BL_KERNEL(bl_w1_gemm_row, GEMM_THREADS, 1, const __grid_constant__ Product p) { gemm_row<1, false>(p); }
BL_KERNEL(bl_w1_gemm_group, GEMM_THREADS, 1, const __grid_constant__ Product p) { gemm_grouped<1, false, false>(p); }
BL_KERNEL(bl_w1_gemm_level, GEMM_THREADS, 1, const __grid_constant__ Product p) { gemm_grouped<1, false, true>(p); }
