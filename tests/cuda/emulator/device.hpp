// What the kernels see when they are compiled for the CPU: the words of CUDA C++ that they use, and the emulated
// bodies of the wrappers in kernels/platform.cuh. A word that is missing here is a compile error: add it with the
// meaning that the CUDA C++ programming guide gives it, strictly.
#pragma once

#include "engine.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __restrict__ __restrict
#define __align__(n) alignas(n)
#define __grid_constant__
#define __shared__ static_assert(false, "BL_SHARED or BL_SHARED_ARRAY, see kernels/platform.cuh");

#define BL_DEVICE static inline __attribute__((unused))
#define BL_MEMBER inline
#define BL_KERNEL(name, threads, blocks, ...)                          \
    extern "C" void name(__VA_ARGS__);                                 \
    static const ::emu::Registrar emu_registrar_##name(#name, threads, &name); \
    extern "C" void name(__VA_ARGS__)
#define BL_SHARED(name) unsigned char* const name = ::emu::dynamic_shared()
#define BL_SHARED_ARRAY(type, name, count)                                        \
    static ::emu::SharedSite emu_site_##name{sizeof(type) * (count)};             \
    type* const name = (type*)emu_site_##name.enter()
#define BL_HOPPER 1

using std::max;
using std::min;

// ---- Types -------------------------------------------------------------------------------------------------------

#define EMU_VECTOR(type, short_name, align2, align4)                                             \
    struct alignas(align2) short_name##2 { type x, y; };                                         \
    struct alignas(align4) short_name##4 { type x, y, z, w; };                                   \
    inline short_name##2 make_##short_name##2(type x, type y) { return {x, y}; }                 \
    inline short_name##4 make_##short_name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
EMU_VECTOR(uint32_t, uint, 8, 16)
EMU_VECTOR(int32_t, int, 8, 16)
EMU_VECTOR(float, float, 8, 16)
EMU_VECTOR(uint16_t, ushort, 4, 8)
EMU_VECTOR(int16_t, short, 4, 8)
EMU_VECTOR(uint8_t, uchar, 2, 4)
EMU_VECTOR(int8_t, char, 2, 4)
struct alignas(16) double2 { double x, y; };
struct alignas(16) ulonglong2 { uint64_t x, y; };
struct uint3 { uint32_t x, y, z; };
using dim3 = ::emu::Extent;

#define threadIdx (::emu::fiber->index)
#define blockIdx (::emu::block_index())
#define blockDim (::emu::block_extent())
#define gridDim (::emu::grid_extent())
constexpr int warpSize = 32;

// ---- Barriers and warps -----------------------------------------------------------------------------------------------

BL_DEVICE void __syncthreads(::emu::Line line = EMU_LINE) { ::emu::barrier(0, 0, 0, "__syncthreads", line); }
BL_DEVICE int __syncthreads_count(int p, ::emu::Line line = EMU_LINE) {
    return ::emu::barrier(0, 0, p != 0, "__syncthreads_count", line);
}
BL_DEVICE int __syncthreads_or(int p, ::emu::Line line = EMU_LINE) {
    return ::emu::barrier(0, 0, p != 0, "__syncthreads_or", line) != 0;
}
BL_DEVICE int __syncthreads_and(int p, ::emu::Line line = EMU_LINE) {
    return ::emu::barrier(0, 0, p == 0, "__syncthreads_and", line) == 0;
}
BL_DEVICE void __threadfence() {}
BL_DEVICE void __threadfence_block() {}

BL_DEVICE void __syncwarp(unsigned mask = 0xffffffffu, ::emu::Line line = EMU_LINE) {
    ::emu::leave(::emu::meet(mask, "__syncwarp", line, {0, 0, 0, 0}));
}

template <class T> T emu_shuffle(unsigned mask, T value, int source, const char* operation, ::emu::Line line) {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
    uint64_t word = 0;
    memcpy(&word, &value, sizeof value);
    ::emu::Meeting& m = ::emu::meet(mask, operation, line, {word, 0, 0, 0});
    if (source >= 0 && source < 32) {
        if (!(mask >> source & 1)) ::emu::fault("%s at %s:%u reads lane %d, which the mask %08x lacks", operation,
                                                line.file_name(), line.line(), source, mask);
        memcpy(&value, &m.words[source][0], sizeof value);
    }
    ::emu::leave(m);
    return value;
}
template <class T> BL_DEVICE T __shfl_sync(unsigned mask, T v, int from, int width = 32, ::emu::Line line = EMU_LINE) {
    const int lane = ::emu::fiber->lane;
    return emu_shuffle(mask, v, (lane & ~(width - 1)) | (from & (width - 1)), "__shfl_sync", line);
}
template <class T> BL_DEVICE T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32, ::emu::Line line = EMU_LINE) {
    const int lane = ::emu::fiber->lane, from = lane ^ bits;
    return emu_shuffle(mask, v, from > (lane | (width - 1)) ? lane : from, "__shfl_xor_sync", line);
}
template <class T> BL_DEVICE T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32, ::emu::Line line = EMU_LINE) {
    const int lane = ::emu::fiber->lane, from = lane + (int)by;
    return emu_shuffle(mask, v, from > (lane | (width - 1)) ? lane : from, "__shfl_down_sync", line);
}
template <class T> BL_DEVICE T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32, ::emu::Line line = EMU_LINE) {
    const int lane = ::emu::fiber->lane, from = lane - (int)by;
    return emu_shuffle(mask, v, from < (lane & ~(width - 1)) ? lane : from, "__shfl_up_sync", line);
}
BL_DEVICE unsigned __ballot_sync(unsigned mask, int p, ::emu::Line line = EMU_LINE) {
    ::emu::Meeting& m = ::emu::meet(mask, "__ballot_sync", line, {p != 0, 0, 0, 0});
    unsigned bits = 0;
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1 && m.words[i][0]) bits |= 1u << i;
    ::emu::leave(m);
    return bits;
}
BL_DEVICE int __any_sync(unsigned mask, int p, ::emu::Line line = EMU_LINE) { return __ballot_sync(mask, p, line) != 0; }
BL_DEVICE int __all_sync(unsigned mask, int p, ::emu::Line line = EMU_LINE) { return __ballot_sync(mask, p, line) == mask; }

// Blocks run one after another and threads one at a time, so that a plain read and write is atomic.
template <class T> BL_DEVICE T atomicAdd(T* p, std::type_identity_t<T> v) { T old = *p; *p = old + v; return old; }
template <class T> BL_DEVICE T atomicMax(T* p, std::type_identity_t<T> v) { T old = *p; *p = std::max(old, v); return old; }
template <class T> BL_DEVICE T atomicMin(T* p, std::type_identity_t<T> v) { T old = *p; *p = std::min(old, v); return old; }
template <class T> BL_DEVICE T atomicExch(T* p, std::type_identity_t<T> v) { T old = *p; *p = v; return old; }
template <class T> BL_DEVICE T atomicOr(T* p, std::type_identity_t<T> v) { T old = *p; *p = old | v; return old; }
template <class T> BL_DEVICE T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> v) {
    T old = *p;
    if (old == expected) *p = v;
    return old;
}

// ---- Memory -------------------------------------------------------------------------------------------------------------

/// A load of a vector must be aligned, which a CPU does not insist on.
template <class T> BL_DEVICE const T* emu_aligned(const T* p, ::emu::Line line) {
    if ((uintptr_t)p % alignof(T)) ::emu::fault("a load of %zu bytes at %s:%u from %p", sizeof(T), line.file_name(), line.line(), (const void*)p);
    return p;
}
template <class T> BL_DEVICE T __ldg(const T* p, ::emu::Line line = EMU_LINE) { return *emu_aligned(p, line); }
template <class T> BL_DEVICE T __ldcs(const T* p, ::emu::Line line = EMU_LINE) { return *emu_aligned(p, line); }
template <class T> BL_DEVICE T __ldcg(const T* p, ::emu::Line line = EMU_LINE) { return *emu_aligned(p, line); }

// ---- Arithmetic ------------------------------------------------------------------------------------------------------------

BL_DEVICE float __fadd_rn(float a, float b) { return a + b; }
BL_DEVICE float __fsub_rn(float a, float b) { return a - b; }
BL_DEVICE float __fmul_rn(float a, float b) { return a * b; }
BL_DEVICE float __fdiv_rn(float a, float b) { return a / b; }
BL_DEVICE float __fsqrt_rn(float a) { return __builtin_sqrtf(a); }
BL_DEVICE float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
BL_DEVICE uint32_t __float_as_uint(float f) { return std::bit_cast<uint32_t>(f); }
BL_DEVICE int32_t __float_as_int(float f) { return std::bit_cast<int32_t>(f); }
BL_DEVICE float __uint_as_float(uint32_t u) { return std::bit_cast<float>(u); }
BL_DEVICE float __int_as_float(int32_t i) { return std::bit_cast<float>(i); }
BL_DEVICE float __int2float_rn(int i) { return (float)i; }
BL_DEVICE float __uint2float_rn(unsigned i) { return (float)i; }
BL_DEVICE float __ll2float_rn(int64_t i) { return (float)i; }
/// Half to even; what does not fit is clamped, a NaN gives 0.
BL_DEVICE int __float2int_rn(float f) {
    if (f != f) return 0;
    if (f >= 2147483648.0f) return INT32_MAX;
    if (f < -2147483648.0f) return INT32_MIN;
    return (int)__builtin_nearbyintf(f);
}
BL_DEVICE int __popc(unsigned v) { return __builtin_popcount(v); }
BL_DEVICE int __clz(int v) { return v ? __builtin_clz((unsigned)v) : 32; }
BL_DEVICE int __ffs(int v) { return __builtin_ffs(v); }
/// Each hexadecimal digit of `selector` names a byte of y:x; bit 3 of it repeats that byte's sign.
BL_DEVICE uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t selector) {
    const uint64_t bytes = (uint64_t)y << 32 | x;
    uint32_t r = 0;
    for (int i = 0; i < 4; i++) {
        const uint32_t s = selector >> (4 * i) & 15;
        uint8_t b = (uint8_t)(bytes >> (8 * (s & 7)));
        if (s & 8) b = b & 0x80 ? 0xff : 0;
        r |= (uint32_t)b << (8 * i);
    }
    return r;
}
BL_DEVICE uint32_t __funnelshift_l(uint32_t low, uint32_t high, uint32_t by) {
    return (uint32_t)(((uint64_t)high << 32 | low) << (by & 31) >> 32);
}
BL_DEVICE uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t by) {
    return (uint32_t)(((uint64_t)high << 32 | low) >> (by & 31));
}

// ---- The wrappers of platform.cuh ----------------------------------------------------------------------------------------------

BL_DEVICE int bl_dp4a_us(uint32_t a, uint32_t b, int c) {
    uint32_t sum = (uint32_t)c;
    for (int i = 0; i < 32; i += 8) sum += (uint32_t)((int)(uint8_t)(a >> i) * (int)(int8_t)(b >> i));
    return (int)sum;
}
BL_DEVICE int bl_dp4a_ss(uint32_t a, uint32_t b, int c) {
    uint32_t sum = (uint32_t)c;
    for (int i = 0; i < 32; i += 8) sum += (uint32_t)((int)(int8_t)(a >> i) * (int)(int8_t)(b >> i));
    return (int)sum;
}

/// The last lane to come computes the product of the tiles, from the fragments as platform.cuh draws them. A lane's
/// words are a[0..1], a[2..3], b.
template <class Code, int columns> void emu_mma_product(::emu::Meeting& m) {
    int16_t a[16][columns], b[8][columns];
    for (int lane = 0; lane < 32; lane++) {
        const int g = lane / 4, t = lane % 4;
        const uint64_t* words = m.words[lane];
        for (int half = 0; half < columns / 16; half++)
            for (int i = 0; i < 4; i++) {
                const int k = 16 * half + 4 * t + i;
                a[g][k] = (Code)(words[half] >> (8 * i));
                a[g + 8][k] = (Code)(words[half] >> (32 + 8 * i));
                b[g][k] = (int8_t)(words[2] >> (32 * half + 8 * i));
            }
    }
    for (int row = 0; row < 16; row++)
        for (int column = 0; column < 8; column++) {
            int sum = 0;
            for (int k = 0; k < columns; k++) sum += a[row][k] * b[column][k];
            m.product[row][column] = sum;
        }
}
template <class Code, int columns>
void emu_mma(int (&c)[4], uint64_t a01, uint64_t a23, uint64_t b, const char* operation, ::emu::Line line) {
    ::emu::Meeting& m = ::emu::meet(0xffffffffu, operation, line, {a01, a23, b, 0}, emu_mma_product<Code, columns>);
    const int g = ::emu::fiber->lane / 4, t = ::emu::fiber->lane % 4;
    for (int i = 0; i < 4; i++) c[i] = (int)((uint32_t)c[i] + (uint32_t)m.product[g + 8 * (i / 2)][2 * t + i % 2]);
    ::emu::leave(m);
}
BL_DEVICE uint64_t emu_pair(uint32_t low, uint32_t high) { return (uint64_t)high << 32 | low; }
BL_DEVICE void bl_mma_k32_us(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, ::emu::Line line = EMU_LINE) {
    emu_mma<uint8_t, 32>(c, emu_pair(a[0], a[1]), emu_pair(a[2], a[3]), emu_pair(b0, b1), "bl_mma_k32_us", line);
}
BL_DEVICE void bl_mma_k32_ss(int (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, ::emu::Line line = EMU_LINE) {
    emu_mma<int8_t, 32>(c, emu_pair(a[0], a[1]), emu_pair(a[2], a[3]), emu_pair(b0, b1), "bl_mma_k32_ss", line);
}
BL_DEVICE void bl_mma_k16_us(int (&c)[4], const uint32_t (&a)[2], uint32_t b0, ::emu::Line line = EMU_LINE) {
    emu_mma<uint8_t, 16>(c, emu_pair(a[0], a[1]), 0, b0, "bl_mma_k16_us", line);
}
BL_DEVICE void bl_mma_k16_ss(int (&c)[4], const uint32_t (&a)[2], uint32_t b0, ::emu::Line line = EMU_LINE) {
    emu_mma<int8_t, 16>(c, emu_pair(a[0], a[1]), 0, b0, "bl_mma_k16_ss", line);
}

BL_DEVICE uint32_t bl_shared_place(const void* p) {
    return (uint32_t)((const unsigned char*)p - ::emu::dynamic_shared()) + 128; // not aligned to more, as on a card
}
BL_DEVICE void bl_copy_async(void* to, const void* from, bool in_range) { ::emu::copy_async(to, from, in_range); }
BL_DEVICE void bl_copy_commit() { ::emu::fiber->group++; }
template <int left> BL_DEVICE void bl_copy_wait() { ::emu::copy_wait(left); }

BL_DEVICE uint32_t bl_opaque(uint32_t v) { return v; }
BL_DEVICE void bl_prefetch(const void* p) { (void)*(const volatile unsigned char*)p; }

BL_DEVICE float bl_f16_to_f32(uint16_t bits) { return (float)std::bit_cast<_Float16>(bits); }
BL_DEVICE uint16_t bl_f32_to_f16(float f) { return f == f ? std::bit_cast<uint16_t>((_Float16)f) : (uint16_t)0x7e00; }

#include "hopper.hpp"
