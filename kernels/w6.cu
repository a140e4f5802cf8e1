// Products with codes of 6 bits.
#include "few.cuh"
#include "gemm.cuh"

BL_KERNEL(bl_w6_few8, FEW_THREADS, 2, const __grid_constant__ Product p) { few<6, false, 1>(p); }
BL_KERNEL(bl_w6_few16, FEW_THREADS, 2, const __grid_constant__ Product p) { few<6, false, 2>(p); }
BL_KERNEL(bl_w6_few32, FEW_THREADS, 2, const __grid_constant__ Product p) { few<6, false, 4>(p); }
BL_KERNEL(bl_w6_gemm_row, GEMM_THREADS, 1, const __grid_constant__ Product p) { gemm_row<6, false>(p); }
BL_KERNEL(bl_w6_gemm_group, GEMM_THREADS, 1, const __grid_constant__ Product p) { gemm_grouped<6, false, false>(p); }
BL_KERNEL(bl_w6_gemm_level, GEMM_THREADS, 1, const __grid_constant__ Product p) { gemm_grouped<6, false, true>(p); }
