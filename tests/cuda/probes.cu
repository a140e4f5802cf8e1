// One kernel for each wrapper of kernels/platform.cuh. On the emulated GPU they test the emulation itself; on a
// card tests/gpu compares what the real bodies give with what the emulated ones gave. Not part of the library.
#include "platform.cuh"

struct ProbeParams {
    const uint32_t* in; ///< 8 words a thread
    uint32_t* out;      ///< 4 words a thread
};

BL_KERNEL(bl_probe_dp4a, 256, 1, const ProbeParams p) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const uint32_t* in = p.in + 8 * i;
    p.out[4 * i] = (uint32_t)bl_dp4a_us(in[0], in[1], (int)in[2]);
    p.out[4 * i + 1] = (uint32_t)bl_dp4a_ss(in[0], in[1], (int)in[2]);
    p.out[4 * i + 2] = bl_f32_to_f16(__uint_as_float(in[3])) | (uint32_t)bl_f32_to_bf16(__uint_as_float(in[3])) << 16;
    const float widened = bl_f16_to_f32((uint16_t)in[4]);
    p.out[4 * i + 3] = widened == widened ? __float_as_uint(widened) : 0x7fc00000; // which NaN it is, is not promised
}

/// which: 0 k32 us, 1 k32 ss, 2 k16 us, 3 k16 ss.
BL_KERNEL(bl_probe_mma, 256, 1, const ProbeParams p, const int which) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const uint32_t* in = p.in + 8 * i;
    const uint32_t a[4] = {in[0], in[1], in[2], in[3]}, half[2] = {in[0], in[1]};
    int c[4] = {(int)in[6], (int)in[7], (int)(in[6] ^ in[7]), (int)(in[6] + in[7])};
    if (which == 0) bl_mma_k32_us(c, a, in[4], in[5]);
    if (which == 1) bl_mma_k32_ss(c, a, in[4], in[5]);
    if (which == 2) bl_mma_k16_us(c, half, in[4]);
    if (which == 3) bl_mma_k16_ss(c, half, in[4]);
    for (int j = 0; j < 4; j++) p.out[4 * i + j] = (uint32_t)c[j];
}

/// Each thread copies 16 bytes in by two groups and passes them to its neighbour.
BL_KERNEL(bl_probe_copy, 256, 1, const ProbeParams p) {
    BL_SHARED(shared);
    const int i = blockIdx.x * blockDim.x + threadIdx.x, t = threadIdx.x, n = blockDim.x;
    bl_copy_async(shared + 32 * t, p.in + 8 * i, true);
    bl_copy_commit();
    bl_copy_async(shared + 32 * t + 16, p.in + 8 * i + 4, (t & 1) != 0);
    bl_copy_commit();
    bl_copy_wait<1>();
    __syncthreads();
    const uint4 first = *(const uint4*)(shared + 32 * ((t + 1) % n));
    bl_copy_wait<0>();
    __syncthreads();
    const uint4 second = *(const uint4*)(shared + 32 * ((t + 1) % n) + 16);
    p.out[4 * i] = first.x ^ second.x;
    p.out[4 * i + 1] = first.y ^ second.y;
    p.out[4 * i + 2] = first.z ^ second.z;
    p.out[4 * i + 3] = first.w ^ second.w;
}

#if BL_HOPPER
/// A tile by bulk copies and a barrier, and twice four products of a warpgroup: 128 threads, 64 x 128 by 128 x 64. The
/// second four are with the fragments of steps 1, 0, 3, 2, other bits, made while the first run: these must not lose theirs to it.
/// in: 4 x 128 x 4 words of A fragments, then the 64 rows of 128 bytes of B's image; out: 32 words a thread.
BL_KERNEL(bl_probe_wgmma, 128, 1, const ProbeParams p) {
    BL_SHARED(raw);
    unsigned char* shared = raw + (1024 - bl_shared_place(raw) % 1024) % 1024;
    uint64_t* barrier = (uint64_t*)(shared + 64 * 128);
    const int t = threadIdx.x;
    if (t == 0) {
        bl_barrier_init(barrier, 1);
        bl_barrier_init_done();
    }
    __syncthreads();
    if (t == 0) {
        bl_barrier_arrive_expect(barrier, 64 * 128);
        bl_copy_bulk(shared, p.in + 4 * 128 * 4, 32 * 128, barrier);
        bl_copy_bulk(shared + 32 * 128, p.in + 4 * 128 * 4 + 32 * 32, 32 * 128, barrier);
    }
    bl_barrier_wait(barrier, 0);
    int c[32];
#pragma unroll
    for (int i = 0; i < 32; i++) c[i] = 1000 * t + i;
    uint32_t a[4][4];
#pragma unroll
    for (int step = 0; step < 4; step++)
#pragma unroll
        for (int i = 0; i < 4; i++) a[step][i] = p.in[(step * 128 + t) * 4 + i];
    bl_wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; step++) bl_wgmma(c, a[step], shared, step);
    bl_wgmma_commit();
    uint32_t swapped[4][4];
#pragma unroll
    for (int step = 0; step < 4; step++)
#pragma unroll
        for (int i = 0; i < 4; i++) swapped[step][i] = ~p.in[((step ^ 1) * 128 + t) * 4 + i] & 0x7f7f7f7fu;
    bl_wgmma_wait<0>(c, a);
    bl_wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; step++) bl_wgmma(c, swapped[step], shared, step);
    bl_wgmma_commit();
    bl_wgmma_wait<0>(c, swapped);
#pragma unroll
    for (int i = 0; i < 32; i++) p.out[32 * t + i] = (uint32_t)c[i];
}
#endif
