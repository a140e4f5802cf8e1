// The one place where the kernels meet the platform. Two platforms read them:
//
//   NVRTC (cargo xtask kernels)     the bodies below: CUDA, and PTX where CUDA has no word for an instruction
//   g++ -DBL_EMU (tests/cuda)       tests/cuda/emulator/device.hpp: the same names with the same meaning on a CPU
//
// Everything that is not plain C++ stands here and only here, so that a kernel is the same text on both, and so
// that tests/cuda/probes.cu can hold the two bodies of each wrapper against one another on a real card.
//
// A kernel is written as
//     BL_KERNEL(bl_name, threads, blocks, const Params p) { ... }
// with at most `threads` threads in a block and registers for `blocks` blocks on a multiprocessor.
// Shared memory: BL_SHARED(name) is the launch's dynamic shared memory as bytes, aligned to 128;
// BL_SHARED_ARRAY(type, name, count) is an array of the block's own. `__shared__` itself is not used.
// Floats: __fmaf_rn, __fmul_rn, __fadd_rn, __fsub_rn, __fdiv_rn, __fsqrt_rn; both platforms compile without
// contraction. NaN: see the conversions at the end.
#pragma once

#if defined(BL_EMU)
#include "device.hpp"
#else

typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
typedef unsigned long long uintptr_t;

#define BL_DEVICE __device__ __forceinline__
/// The same for a member of a struct.
#define BL_MEMBER __device__ __forceinline__
#define BL_KERNEL(name, threads, blocks, ...) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(__VA_ARGS__)
#define BL_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#define BL_SHARED_ARRAY(type, name, count) __shared__ type name[count]
/// 1 in code for compute capability 9.0 with its own instructions (wgmma, bulk copies).
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define BL_HOPPER 1
#else
#define BL_HOPPER 0
#endif

// ---- Products of bytes ------------------------------------------------------------------------------------
// us: unsigned by signed; ss: signed by signed. Sums wrap at 32 bits.

/// c + the four products of the bytes of a and b.
BL_DEVICE int bl_dp4a_us(uint32_t a, uint32_t b, int c) {
    int d;
    asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
BL_DEVICE int bl_dp4a_ss(uint32_t a, uint32_t b, int c) {
    int d;
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// One warp multiplies a 16 x 32 (or 16 x 16) tile by a 32 x 8 (16 x 8) tile. Lane l = 4 g + t holds
//   a[0], a[1]   rows g and g + 8 of A, columns 4t..4t+3, low byte first
//   a[2], a[3]   the same rows, columns 16 + 4t..               (k32 only)
//   b0, b1       column g of B, rows 4t..4t+3 and 16 + 4t..     (b1: k32 only)
//   c[0], c[1]   row g, columns 2t and 2t + 1;  c[2], c[3]  row g + 8
// All 32 lanes call together.
#if __CUDA_ARCH__ >= 800
#define BL_MMA_K32(types)                                                                                     \
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32." types ".s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, " \
                 "{%0,%1,%2,%3};"                                                                             \
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])                                             \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
#define BL_MMA_K16(types)                                                                              \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.s32." types ".s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, " \
                 "{%0,%1,%2,%3};"                                                                      \
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])                                      \
                 : "r"(a[0]), "r"(a[1]), "r"(b0))
#else // Turing has 8 x 16 by 16 x 8 only: the halves of the larger tile
#define BL_MMA_EIGHT(types, low, high, rows, columns)                                                     \
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32." types ".s32 {%0,%1}, {%2}, {%3}, {%0,%1};" \
                 : "+r"(c[low]), "+r"(c[high])                                                            \
                 : "r"(a[rows]), "r"(columns))
#define BL_MMA_K16(types)              \
    BL_MMA_EIGHT(types, 0, 1, 0, b0);  \
    BL_MMA_EIGHT(types, 2, 3, 1, b0)
#define BL_MMA_K32(types)              \
    BL_MMA_K16(types);                 \
    BL_MMA_EIGHT(types, 0, 1, 2, b1);  \
    BL_MMA_EIGHT(types, 2, 3, 3, b1)
#endif

BL_DEVICE void bl_mma_k32_us(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { BL_MMA_K32("u8.s8"); }
BL_DEVICE void bl_mma_k32_ss(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { BL_MMA_K32("s8.s8"); }
BL_DEVICE void bl_mma_k16_us(int (&c)[4], const uint32_t (&a)[2], uint32_t b0) { BL_MMA_K16("u8.s8"); }
BL_DEVICE void bl_mma_k16_ss(int (&c)[4], const uint32_t (&a)[2], uint32_t b0) { BL_MMA_K16("s8.s8"); }

// ---- Copies to shared memory that a thread does not wait for --------------------------------------------------

BL_DEVICE uint32_t bl_shared_address(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }

/// Where in the block's shared memory a pointer into it points: a tile of wgmma begins at a multiple of 1024.
BL_DEVICE uint32_t bl_shared_place(const void* p) { return bl_shared_address(p); }

/// 16 bytes of global memory to shared memory, or 16 zeros where `in_range` is false (`from` is then not read,
/// but must be a valid address). Both addresses are multiples of 16.
BL_DEVICE void bl_copy_async(void* to, const void* from, bool in_range) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(bl_shared_address(to)), "l"(from),
                 "r"(in_range ? 16 : 0)
                 : "memory");
#else
    *(uint4*)to = in_range ? *(const uint4*)from : make_uint4(0, 0, 0, 0);
#endif
}
/// Closes the group of this thread's copies since the last commit.
BL_DEVICE void bl_copy_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
/// Waits for all groups of this thread but the last `left`. Other threads see the bytes after a barrier.
template <int left> BL_DEVICE void bl_copy_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
#endif
}

/// Has the line of global memory at an address come to the L2 cache.
BL_DEVICE void bl_prefetch(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

/// A value that the compiler knows nothing of: what follows from it is computed where it is used, not once before a
/// loop, where it would hold registers.
BL_DEVICE uint32_t bl_opaque(uint32_t v) {
    asm volatile("" : "+r"(v));
    return v;
}

// ---- 16-bit floats, as their bits --------------------------------------------------------------------------------
// Rounding half to even. A NaN becomes the canonical one of the narrower type; infinities and subnormals are kept.

BL_DEVICE float bl_f16_to_f32(uint16_t bits) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(bits));
    return f;
}
BL_DEVICE uint16_t bl_f32_to_f16(float f) {
    uint16_t bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(f));
    return f == f ? bits : (uint16_t)0x7e00; // the instruction gives 0x7fff
}

#include "platform_hopper.cuh"

#endif // BL_EMU

BL_DEVICE float bl_bf16_to_f32(uint16_t bits) { return __uint_as_float((uint32_t)bits << 16); }
BL_DEVICE uint16_t bl_f32_to_bf16(float f) {
    const uint32_t u = __float_as_uint(f);
    return f == f ? (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16) : (uint16_t)0x7fc0;
}
