// One launch under way: the block that runs, its threads, its memory.
#pragma once

#include "engine.hpp"

#include <algorithm>
#include <csetjmp>
#include <map>
#include <memory>
#include <sys/mman.h>

// Stacks are switched by a few instructions of our own on x86-64, elsewhere by the C library.
#if !defined(__x86_64__) && !defined(EMU_UCONTEXT)
#define EMU_UCONTEXT
#endif
#if defined(EMU_UCONTEXT)
#include <ucontext.h>
#endif

namespace emu {

constexpr size_t PAGE = 4096;
/// Of one CUDA thread, with a page below it that cannot be touched.
constexpr size_t STACK = 64 * 1024;
constexpr int MAX_THREADS = 1024;
constexpr size_t MAX_SHARED = 256 * 1024;

struct BulkCopy {
    void* to;
    const void* from;
    unsigned bytes;
};
/// A barrier in shared memory: arrivals and bytes that its phase still waits for.
struct MemoryBarrier {
    unsigned arrivals, pending, bytes, phase;
    std::vector<BulkCopy> copies;
};
/// At the end of a block.
void check_memory_barriers();

/// Memory that ends where a page begins that cannot be touched.
struct Region {
    char* pages = nullptr;
    size_t size = 0;
    Region(size_t bytes) {
        size = (bytes + PAGE - 1) / PAGE * PAGE;
        pages = (char*)mmap(nullptr, size + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (pages == MAP_FAILED) abort();
        if (size) mprotect(pages + PAGE, size, PROT_READ | PROT_WRITE);
    }
    Region(const Region&) = delete;
    ~Region() { munmap(pages, size + 2 * PAGE); }
    unsigned char* end() const { return (unsigned char*)pages + PAGE + size; }
};

struct SiteMemory {
    std::unique_ptr<Region> region;
    uint64_t block = 0; ///< the last one that saw it poisoned
};

struct Machine {
    const Kernel* kernel = nullptr;
    void** arguments = nullptr;
    Extent grid, block, index;
    uint64_t serial = 0; ///< of the block, over all launches
    int threads = 0, alive = 0;
    std::vector<Fiber> fibers{(size_t)MAX_THREADS};
    std::vector<Warp> warps{(size_t)MAX_THREADS / 32};
    std::array<Barrier, 16> barriers;
    void* scheduler = nullptr;
    char* stacks;
    Region dynamic{MAX_SHARED};
    unsigned char* shared = nullptr;
    size_t shared_bytes = 0;
    std::map<const SharedSite*, SiteMemory> sites;
    uint64_t random = 1;
    bool failed = false;
    sigjmp_buf escape;
    Machine* outer = nullptr;

    std::map<uint64_t*, MemoryBarrier> memory_barriers;

    Machine() {
        stacks = (char*)mmap(nullptr, STACK * MAX_THREADS, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stacks == MAP_FAILED) abort();
        for (int i = 0; i < MAX_THREADS; i++) mprotect(stacks + STACK * i, PAGE, PROT_NONE);
#if defined(EMU_UCONTEXT)
        scheduler = &contexts[MAX_THREADS];
#endif
    }
    ~Machine() { munmap(stacks, STACK * MAX_THREADS); }
#if defined(EMU_UCONTEXT)
    std::unique_ptr<ucontext_t[]> contexts{new ucontext_t[MAX_THREADS + 1]}; ///< the last is the scheduler's
#endif

    unsigned draw(unsigned bound) {
        random = random * 6364136223846793005ull + 1442695040888963407ull;
        return (unsigned)((random >> 33) % bound);
    }
    void run(Fiber& f);
    /// Makes those ready who wait for a barrier in memory: they look again.
    void wake(uint64_t* memory_barrier) {
        for (int i = 0; i < threads; i++)
            if (fibers[i].memory_barrier == memory_barrier) {
                fibers[i].memory_barrier = nullptr;
                fibers[i].state = State::Ready;
            }
    }
    void start_block(uint64_t number);
    void run_block();
    bool pass(int first, int last, bool backwards, bool shuffled);
    bool late(bool backwards, bool shuffled);
    void check_shared_slack();
    [[noreturn]] void deadlock();
};

} // namespace emu
