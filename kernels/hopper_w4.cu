// Products with codes of 4 bits, one scale a row, for many rows of x, on compute capability 9.0.
#include "wgmma.cuh"

BL_KERNEL(bl_w4_wgmma64, WGMMA_THREADS, 1, const __grid_constant__ Product p) { wgmma_row<4, false, 64>(p); }
BL_KERNEL(bl_w4_wgmma128, WGMMA_THREADS, 1, const __grid_constant__ Product p) { wgmma_row<4, false, 128>(p); }
BL_KERNEL(bl_w4_wgmma256, WGMMA_THREADS, 1, const __grid_constant__ Product p) { wgmma_row<4, false, 256>(p); }
