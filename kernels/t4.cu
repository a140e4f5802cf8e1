// Products with codes of 4 bits through a table of 16 signed bytes.
#include "few.cuh"
#include "gemm.cuh"

BL_KERNEL(bl_t4_few8, FEW_THREADS, 2, const __grid_constant__ Product p) { few<4, true, 1>(p); }
BL_KERNEL(bl_t4_few16, FEW_THREADS, 2, const __grid_constant__ Product p) { few<4, true, 2>(p); }
BL_KERNEL(bl_t4_few32, FEW_THREADS, 2, const __grid_constant__ Product p) { few<4, true, 4>(p); }
BL_KERNEL(bl_t4_gemm_row, GEMM_THREADS, 1, const __grid_constant__ Product p) { gemm_row<4, true>(p); }
BL_KERNEL(bl_t4_gemm_group, GEMM_THREADS, 1, const __grid_constant__ Product p) { gemm_grouped<4, true, false>(p); }
BL_KERNEL(bl_t4_gemm_level, GEMM_THREADS, 1, const __grid_constant__ Product p) { gemm_grouped<4, true, true>(p); }
