// Products with codes of 8 bits.
#include "few.cuh"
#include "gemm.cuh"

BL_KERNEL(bl_w8_few8, FEW_THREADS, 2, const __grid_constant__ Product p) { few<8, false, 1>(p); }
BL_KERNEL(bl_w8_few16, FEW_THREADS, 2, const __grid_constant__ Product p) { few<8, false, 2>(p); }
BL_KERNEL(bl_w8_few32, FEW_THREADS, 2, const __grid_constant__ Product p) { few<8, false, 4>(p); }
BL_KERNEL(bl_w8_gemm_row, GEMM_THREADS, 1, const __grid_constant__ Product p) { gemm_row<8, false>(p); }
BL_KERNEL(bl_w8_gemm_group, GEMM_THREADS, 1, const __grid_constant__ Product p) { gemm_grouped<8, false, false>(p); }
BL_KERNEL(bl_w8_gemm_level, GEMM_THREADS, 1, const __grid_constant__ Product p) { gemm_grouped<8, false, true>(p); }
