// Products with codes of 2 bits.
#include "few.cuh"
#include "gemm.cuh"

BL_KERNEL(bl_w2_few8, FEW_THREADS, 2, const __grid_constant__ Product p) { few<2, false, 1>(p); }
BL_KERNEL(bl_w2_few16, FEW_THREADS, 2, const __grid_constant__ Product p) { few<2, false, 2>(p); }
BL_KERNEL(bl_w2_few32, FEW_THREADS, 2, const __grid_constant__ Product p) { few<2, false, 4>(p); }
BL_KERNEL(bl_w2_gemm_row, GEMM_THREADS, 1, const __grid_constant__ Product p) { gemm_row<2, false>(p); }
BL_KERNEL(bl_w2_gemm_group, GEMM_THREADS, 1, const __grid_constant__ Product p) { gemm_grouped<2, false, false>(p); }
BL_KERNEL(bl_w2_gemm_level, GEMM_THREADS, 1, const __grid_constant__ Product p) { gemm_grouped<2, false, true>(p); }
