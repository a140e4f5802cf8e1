// Products with codes of 5 bits.
#include "few.cuh"
#include "gemm.cuh"

BL_KERNEL(bl_w5_few8, FEW_THREADS, 2, const __grid_constant__ Product p) { few<5, false, 1>(p); }
BL_KERNEL(bl_w5_few16, FEW_THREADS, 2, const __grid_constant__ Product p) { few<5, false, 2>(p); }
BL_KERNEL(bl_w5_few32, FEW_THREADS, 2, const __grid_constant__ Product p) { few<5, false, 4>(p); }
BL_KERNEL(bl_w5_gemm_row, GEMM_THREADS, 1, const __grid_constant__ Product p) { gemm_row<5, false>(p); }
BL_KERNEL(bl_w5_gemm_group, GEMM_THREADS, 1, const __grid_constant__ Product p) { gemm_grouped<5, false, false>(p); }
BL_KERNEL(bl_w5_gemm_level, GEMM_THREADS, 1, const __grid_constant__ Product p) { gemm_grouped<5, false, true>(p); }
