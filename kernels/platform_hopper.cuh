// The instructions of compute capability 9.0 alone (sm_90a): barriers in shared memory that count bytes, copies of many
// bytes, and products of a warpgroup. A part of platform.cuh, which includes it; both platforms as there.
//
// A warpgroup is 4 warps, the first of which has a number that is a multiple of 4. Together they multiply a tile of A,
// 64 x 32 bytes in registers, by a tile of B, 32 x columns bytes in shared memory. Warp w of the four holds rows
// 16 w .. 16 w + 15 of A in the fragments of bl_mma_k32_ss, and of the sums, for j = 0 .. columns/8 - 1,
//     c[4 j .. 4 j + 3]     columns 8 j + 2 t and + 1 of row g, then of row g + 8       (lane = 4 g + t)
// B lies as `columns` rows of 128 bytes, 1024-byte aligned: row n holds column n of B for four steps of 32; the 16 bytes
// of piece q (0 .. 7) of row n stand at place q ^ n % 8 (the 128-byte swizzle).
#pragma once

#if BL_HOPPER

// ---- Barriers that count arrivals and bytes: 8 bytes of shared memory ---------------------------------------------

/// By one thread; then bl_barrier_init_done() and a __syncthreads() before any other use.
BL_DEVICE void bl_barrier_init(uint64_t* barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bl_shared_address(barrier)), "r"(arrivals) : "memory");
}
BL_DEVICE void bl_barrier_init_done() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
BL_DEVICE void bl_barrier_arrive(uint64_t* barrier) {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [%0]; }" ::"r"(bl_shared_address(barrier))
                 : "memory");
}
/// Arrives, and makes the phase wait for so many bytes of bl_copy_bulk, too.
BL_DEVICE void bl_barrier_arrive_expect(uint64_t* barrier, uint32_t bytes) {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1; }" ::"r"(
                     bl_shared_address(barrier)),
                 "r"(bytes)
                 : "memory");
}
/// Waits until the phase of that parity is over: the first phase has parity 0, and 1 does not wait for it.
BL_DEVICE void bl_barrier_wait(uint64_t* barrier, uint32_t parity) {
    asm volatile(
        "{ .reg .pred done;\n"
        "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@done bra.uni over;\n"
        "bra.uni again;\n"
        "over: }" ::"r"(bl_shared_address(barrier)),
        "r"(parity)
        : "memory");
}
/// Bytes (a multiple of 16) of global to shared memory, both 16-byte aligned, counted by the barrier when they are there.
BL_DEVICE void bl_copy_bulk(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     bl_shared_address(to)),
                 "l"(from), "r"(bytes), "r"(bl_shared_address(barrier))
                 : "memory");
}
/// A barrier of some warps: `threads` of them meet at number 1 to 15.
BL_DEVICE void bl_barrier_some(int number, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// ---- Products of a warpgroup ---------------------------------------------------------------------------------------------

/// Before the first product, and after the last write to its registers.
BL_DEVICE void bl_wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
BL_DEVICE void bl_wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Waits for all committed groups but the last `left`: until then neither c nor a may be touched, nor B be written.
/// `a` are the fragments of all products that have ended by then. To the compiler they are dead once a product is issued, and
/// without a use after the wait it gives their registers to whatever is computed meanwhile, while the product still reads them.
template <int left, int n, int steps> BL_DEVICE void bl_wgmma_wait(int (&c)[n], uint32_t (&a)[steps][4]) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(left) : "memory");
#pragma unroll
    for (int i = 0; i < n; i++) asm volatile("" : "+r"(c[i])::"memory"); // no use of c moves above the wait
#pragma unroll
    for (int i = 0; i < 4 * steps; i++) asm volatile("" : "+r"(a[i / 4][i % 4])::"memory");
}

BL_DEVICE void bl_wgmma_issue(int (&c)[32], const uint32_t (&a)[4], uint64_t tile) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "{%32, %33, %34, %35}, %36, 1;"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]), "+r"(c[4]), "+r"(c[5]), "+r"(c[6]), "+r"(c[7]),
          "+r"(c[8]), "+r"(c[9]), "+r"(c[10]), "+r"(c[11]), "+r"(c[12]), "+r"(c[13]), "+r"(c[14]), "+r"(c[15]),
          "+r"(c[16]), "+r"(c[17]), "+r"(c[18]), "+r"(c[19]), "+r"(c[20]), "+r"(c[21]), "+r"(c[22]), "+r"(c[23]),
          "+r"(c[24]), "+r"(c[25]), "+r"(c[26]), "+r"(c[27]), "+r"(c[28]), "+r"(c[29]), "+r"(c[30]), "+r"(c[31])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(tile));
}

BL_DEVICE void bl_wgmma_issue(int (&c)[64], const uint32_t (&a)[4], uint64_t tile) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47,"
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "{%64, %65, %66, %67}, %68, 1;"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]), "+r"(c[4]), "+r"(c[5]), "+r"(c[6]), "+r"(c[7]),
          "+r"(c[8]), "+r"(c[9]), "+r"(c[10]), "+r"(c[11]), "+r"(c[12]), "+r"(c[13]), "+r"(c[14]), "+r"(c[15]),
          "+r"(c[16]), "+r"(c[17]), "+r"(c[18]), "+r"(c[19]), "+r"(c[20]), "+r"(c[21]), "+r"(c[22]), "+r"(c[23]),
          "+r"(c[24]), "+r"(c[25]), "+r"(c[26]), "+r"(c[27]), "+r"(c[28]), "+r"(c[29]), "+r"(c[30]), "+r"(c[31]),
          "+r"(c[32]), "+r"(c[33]), "+r"(c[34]), "+r"(c[35]), "+r"(c[36]), "+r"(c[37]), "+r"(c[38]), "+r"(c[39]),
          "+r"(c[40]), "+r"(c[41]), "+r"(c[42]), "+r"(c[43]), "+r"(c[44]), "+r"(c[45]), "+r"(c[46]), "+r"(c[47]),
          "+r"(c[48]), "+r"(c[49]), "+r"(c[50]), "+r"(c[51]), "+r"(c[52]), "+r"(c[53]), "+r"(c[54]), "+r"(c[55]),
          "+r"(c[56]), "+r"(c[57]), "+r"(c[58]), "+r"(c[59]), "+r"(c[60]), "+r"(c[61]), "+r"(c[62]), "+r"(c[63])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(tile));
}

BL_DEVICE void bl_wgmma_issue(int (&c)[128], const uint32_t (&a)[4], uint64_t tile) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n256k32.s32.s8.s8 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47,"
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63,"
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79,"
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95,"
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111,"
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
        "{%128, %129, %130, %131}, %132, 1;"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]), "+r"(c[4]), "+r"(c[5]), "+r"(c[6]), "+r"(c[7]),
          "+r"(c[8]), "+r"(c[9]), "+r"(c[10]), "+r"(c[11]), "+r"(c[12]), "+r"(c[13]), "+r"(c[14]), "+r"(c[15]),
          "+r"(c[16]), "+r"(c[17]), "+r"(c[18]), "+r"(c[19]), "+r"(c[20]), "+r"(c[21]), "+r"(c[22]), "+r"(c[23]),
          "+r"(c[24]), "+r"(c[25]), "+r"(c[26]), "+r"(c[27]), "+r"(c[28]), "+r"(c[29]), "+r"(c[30]), "+r"(c[31]),
          "+r"(c[32]), "+r"(c[33]), "+r"(c[34]), "+r"(c[35]), "+r"(c[36]), "+r"(c[37]), "+r"(c[38]), "+r"(c[39]),
          "+r"(c[40]), "+r"(c[41]), "+r"(c[42]), "+r"(c[43]), "+r"(c[44]), "+r"(c[45]), "+r"(c[46]), "+r"(c[47]),
          "+r"(c[48]), "+r"(c[49]), "+r"(c[50]), "+r"(c[51]), "+r"(c[52]), "+r"(c[53]), "+r"(c[54]), "+r"(c[55]),
          "+r"(c[56]), "+r"(c[57]), "+r"(c[58]), "+r"(c[59]), "+r"(c[60]), "+r"(c[61]), "+r"(c[62]), "+r"(c[63]),
          "+r"(c[64]), "+r"(c[65]), "+r"(c[66]), "+r"(c[67]), "+r"(c[68]), "+r"(c[69]), "+r"(c[70]), "+r"(c[71]),
          "+r"(c[72]), "+r"(c[73]), "+r"(c[74]), "+r"(c[75]), "+r"(c[76]), "+r"(c[77]), "+r"(c[78]), "+r"(c[79]),
          "+r"(c[80]), "+r"(c[81]), "+r"(c[82]), "+r"(c[83]), "+r"(c[84]), "+r"(c[85]), "+r"(c[86]), "+r"(c[87]),
          "+r"(c[88]), "+r"(c[89]), "+r"(c[90]), "+r"(c[91]), "+r"(c[92]), "+r"(c[93]), "+r"(c[94]), "+r"(c[95]),
          "+r"(c[96]), "+r"(c[97]), "+r"(c[98]), "+r"(c[99]), "+r"(c[100]), "+r"(c[101]), "+r"(c[102]), "+r"(c[103]),
          "+r"(c[104]), "+r"(c[105]), "+r"(c[106]), "+r"(c[107]), "+r"(c[108]), "+r"(c[109]), "+r"(c[110]), "+r"(c[111]),
          "+r"(c[112]), "+r"(c[113]), "+r"(c[114]), "+r"(c[115]), "+r"(c[116]), "+r"(c[117]), "+r"(c[118]), "+r"(c[119]),
          "+r"(c[120]), "+r"(c[121]), "+r"(c[122]), "+r"(c[123]), "+r"(c[124]), "+r"(c[125]), "+r"(c[126]), "+r"(c[127])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(tile));
}

/// c += A * B, signed bytes; `step` (0 .. 3) of the tile's four. n: half the number of columns.
template <int n> BL_DEVICE void bl_wgmma(int (&c)[n], const uint32_t (&a)[4], const void* tile, int step) {
    // The address in 16 bytes; 8 rows of 128 bytes follow one another after 1024; the 128-byte swizzle.
    const uint64_t address = (bl_shared_address(tile) + 32 * step) >> 4 & 0x3fff;
    bl_wgmma_issue(c, a, address | 1ull << 16 | 64ull << 32 | 1ull << 62);
}

#endif
