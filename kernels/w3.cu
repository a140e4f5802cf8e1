// Products with codes of 3 bits.
#include "few.cuh"
#include "gemm.cuh"

BL_KERNEL(bl_w3_few8, FEW_THREADS, 2, const __grid_constant__ Product p) { few<3, false, 1>(p); }
BL_KERNEL(bl_w3_few16, FEW_THREADS, 2, const __grid_constant__ Product p) { few<3, false, 2>(p); }
BL_KERNEL(bl_w3_few32, FEW_THREADS, 2, const __grid_constant__ Product p) { few<3, false, 4>(p); }
BL_KERNEL(bl_w3_gemm_row, GEMM_THREADS, 1, const __grid_constant__ Product p) { gemm_row<3, false>(p); }
BL_KERNEL(bl_w3_gemm_group, GEMM_THREADS, 1, const __grid_constant__ Product p) { gemm_grouped<3, false, false>(p); }
BL_KERNEL(bl_w3_gemm_level, GEMM_THREADS, 1, const __grid_constant__ Product p) { gemm_grouped<3, false, true>(p); }
