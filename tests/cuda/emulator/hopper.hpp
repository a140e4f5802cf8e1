// The emulated bodies of kernels/platform_hopper.cuh. Bulk copies land only when somebody waits for the barrier that
// counts them; products read shared memory, and write their registers, only at the wait.
#pragma once

namespace emu {

void mbarrier_init(uint64_t* word, unsigned arrivals);
void mbarrier_arrive(uint64_t* word, unsigned bytes);
void mbarrier_wait(uint64_t* word, unsigned parity, Line line);
void copy_bulk(void* to, const void* from, unsigned bytes, uint64_t* word);

void wgmma_fence();
void wgmma_issue(int* c, int count, const uint32_t (&a)[4], const void* tile, int step, Line line);
void wgmma_commit();
void wgmma_wait(int left, const uint32_t* a, int count, Line line);

} // namespace emu

BL_DEVICE void bl_barrier_init(uint64_t* barrier, uint32_t arrivals) { ::emu::mbarrier_init(barrier, arrivals); }
BL_DEVICE void bl_barrier_init_done() {}
BL_DEVICE void bl_barrier_arrive(uint64_t* barrier) { ::emu::mbarrier_arrive(barrier, 0); }
BL_DEVICE void bl_barrier_arrive_expect(uint64_t* barrier, uint32_t bytes) { ::emu::mbarrier_arrive(barrier, bytes); }
BL_DEVICE void bl_barrier_wait(uint64_t* barrier, uint32_t parity, ::emu::Line line = EMU_LINE) {
    ::emu::mbarrier_wait(barrier, parity, line);
}
BL_DEVICE void bl_copy_bulk(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
    ::emu::copy_bulk(to, from, bytes, barrier);
}
BL_DEVICE void bl_barrier_some(int number, int threads, ::emu::Line line = EMU_LINE) {
    if (number < 1 || number > 15 || threads % 32) ::emu::fault("bl_barrier_some(%d, %d)", number, threads);
    ::emu::barrier(number, (unsigned)threads, 0, "bl_barrier_some", line);
}
BL_DEVICE void bl_wgmma_fence() { ::emu::wgmma_fence(); }
BL_DEVICE void bl_wgmma_commit() { ::emu::wgmma_commit(); }
template <int left, int n, int steps>
BL_DEVICE void bl_wgmma_wait(int (&)[n], uint32_t (&a)[steps][4], ::emu::Line line = EMU_LINE) {
    ::emu::wgmma_wait(left, a[0], 4 * steps, line);
}
template <int n>
BL_DEVICE void bl_wgmma(int (&c)[n], const uint32_t (&a)[4], const void* tile, int step, ::emu::Line line = EMU_LINE) {
    static_assert(n == 32 || n == 64 || n == 128, "64, 128 or 256 columns");
    ::emu::wgmma_issue(c, n, a, tile, step, line);
}
