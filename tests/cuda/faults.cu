// Kernels that each do one thing wrong: tests/cuda/selftest.cpp insists that the emulated GPU finds it. Never run
// on a card, never part of the library.
#include "platform.cuh"

struct FaultParams {
    uint32_t* data; ///< 64 words
    int which;
};

/// Wrong only in some schedules: what one thread wrote is read by others without a barrier.
BL_KERNEL(bl_fault_no_barrier, 64, 1, const FaultParams p) {
    BL_SHARED_ARRAY(uint32_t, shared, 64);
    shared[threadIdx.x] = threadIdx.x;
    if (p.which) __syncthreads();
    p.data[threadIdx.x] = shared[63 - threadIdx.x];
}

/// Copies read too early, and by a wait that covers too little.
BL_KERNEL(bl_fault_early, 64, 1, const FaultParams p) {
    BL_SHARED(shared);
    bl_copy_async(shared + 16 * threadIdx.x, p.data, true);
    bl_copy_commit();
    if (p.which == 0) bl_copy_wait<1>();
    if (p.which == 1) bl_copy_wait<0>();
    __syncthreads();
    const uint32_t word = *(const uint32_t*)(shared + 16 * threadIdx.x);
    bl_copy_wait<0>();
    p.data[threadIdx.x] = word;
}

BL_KERNEL(bl_fault, 64, 1, const FaultParams p) {
    BL_SHARED(shared);
    BL_SHARED_ARRAY(uint32_t, own, 20);
    const int t = threadIdx.x;
    switch (p.which) {
    case 0: // past the end of global memory
        p.data[64 + 4 * t] = 1;
        break;
    case 1: // past the end of dynamic shared memory, beyond and within its rounding
        shared[1024 + t] = 1;
        break;
    case 2: shared[1000 + t % 8] = 1; break;
    case 3: // past the end of a block's own array
        own[20 + t] = 1;
        break;
    case 4: // some threads only
        if (t < 16) __syncthreads();
        else __shfl_sync(0xffffffffu, t, 0);
        break;
    case 5: // barriers on different lines
        if (t < 32) __syncthreads();
        else __syncthreads();
        break;
    case 6: // lanes name different masks
        __shfl_sync(t % 32 < 16 ? 0x0000ffffu : 0xffffffffu, t, 0);
        break;
    case 7: __shfl_sync(0x0000fffeu, t, 1); break; // the mask lacks lane 0
    case 8: // the mask names lanes that have ended
        if (t % 32 >= 16) return;
        if (t == 0) __syncwarp(1u);
        __syncthreads();
        __shfl_sync(0xffffffffu, t, 0);
        break;
    case 9: __shfl_sync(0x3u << (t % 32 & ~1), t, 31); break; // a lane that the mask lacks is read
    case 10: // one lane of a warp calls something else
        if (t % 32 == 5) __ballot_sync(0xffffffffu, 1);
        else __shfl_sync(0xffffffffu, t, 0);
        break;
    case 11: bl_copy_async(shared + 8, p.data, true); break;
    case 12: bl_copy_async(p.data, p.data, true); break;
    case 13: bl_copy_async(shared + 16 * t, p.data, true); break; // never waited for
    case 14: p.data[t] = __ldg((const uint4*)(p.data + 1)).x; break;
    case 15: // half the warp multiplies
        if (t % 32 < 16) {
            int c[4] = {};
            const uint32_t a[2] = {};
            bl_mma_k16_us(c, a, 0);
        }
        break;
    case 16: // one warp leaves, the other waits for a barrier that it never reaches
        __syncthreads();
        if (t < 32) __ballot_sync(0x7fffffffu | 1u << 31, 1);
        else if (t == 40) __shfl_sync(0xffffffffu, t, 0);
        break;
    case 17: *(volatile uint32_t*)nullptr = 1; break;
    }
}
