// Products with codes of 4 bits.
#include "few.cuh"
#include "gemm.cuh"

BL_KERNEL(bl_w4_few8, FEW_THREADS, 2, const __grid_constant__ Product p) { few<4, false, 1>(p); }
BL_KERNEL(bl_w4_few16, FEW_THREADS, 2, const __grid_constant__ Product p) { few<4, false, 2>(p); }
BL_KERNEL(bl_w4_few32, FEW_THREADS, 2, const __grid_constant__ Product p) { few<4, false, 4>(p); }
BL_KERNEL(bl_w4_gemm_row, GEMM_THREADS, 1, const __grid_constant__ Product p) { gemm_row<4, false>(p); }
BL_KERNEL(bl_w4_gemm_group, GEMM_THREADS, 1, const __grid_constant__ Product p) { gemm_grouped<4, false, false>(p); }
BL_KERNEL(bl_w4_gemm_level, GEMM_THREADS, 1, const __grid_constant__ Product p) { gemm_grouped<4, false, true>(p); }
