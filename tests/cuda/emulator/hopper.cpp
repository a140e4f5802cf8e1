// Barriers that count bytes, bulk copies, and products of warpgroups.
#include "device.hpp"
#include "machine.hpp"

namespace emu {

constexpr uint64_t MAGIC = 0x6d62617272696572; // what stands in the word: whoever overwrites it is found

static MemoryBarrier& find(uint64_t* word, const char* what) {
    auto found = machine->memory_barriers.find(word);
    if (found == machine->memory_barriers.end()) fault("%s: no barrier was initialised at %p", what, (void*)word);
    if (*word != MAGIC) fault("%s: the barrier at %p was overwritten", what, (void*)word);
    return found->second;
}

void mbarrier_init(uint64_t* word, unsigned arrivals) {
    if ((uintptr_t)word % 8 || !is_shared(word, 8)) fault("bl_barrier_init: %p is not aligned shared memory", (void*)word);
    if (!arrivals) fault("bl_barrier_init: no arrivals");
    *word = MAGIC;
    machine->memory_barriers[word] = {arrivals, arrivals, 0, 0, {}};
}

/// Ends the phase if everything has come, and wakes all who might have waited for that.
static void settle(uint64_t* word, MemoryBarrier& b) {
    if (b.pending == 0 && b.bytes == 0) {
        b.phase ^= 1;
        b.pending = b.arrivals;
    }
    machine->wake(word);
}

void mbarrier_arrive(uint64_t* word, unsigned bytes) {
    MemoryBarrier& b = find(word, "bl_barrier_arrive");
    if (b.pending == 0) fault("more arrivals at a barrier than its %u", b.arrivals);
    b.bytes += bytes;
    b.pending--;
    settle(word, b);
    give_way(); // whoever waits for this may overtake what the thread does next
}

void mbarrier_wait(uint64_t* word, unsigned parity, Line line) {
    for (;;) {
        MemoryBarrier& b = find(word, "bl_barrier_wait");
        if (b.phase != (parity & 1)) return;
        if (b.pending == 0 && !b.copies.empty()) {
            for (BulkCopy& copy : b.copies) {
                memcpy(copy.to, copy.from, copy.bytes);
                b.bytes -= copy.bytes;
            }
            b.copies.clear();
            settle(word, b);
            continue;
        }
        fiber->memory_barrier = word;
        wait("bl_barrier_wait", line);
    }
}

void copy_bulk(void* to, const void* from, unsigned bytes, uint64_t* word) {
    MemoryBarrier& b = find(word, "bl_copy_bulk");
    if (((uintptr_t)to | (uintptr_t)from | bytes) & 15) fault("bl_copy_bulk: %u bytes to %p from %p: not multiples of 16", bytes, to, from);
    if (!is_shared(to, bytes)) fault("bl_copy_bulk: %p is not shared memory of this block", to);
    memset(to, settings.poison, bytes);
    b.copies.push_back({to, from, bytes});
    machine->wake(word);
}

void check_memory_barriers() {
    for (auto& [word, b] : machine->memory_barriers)
        if (!b.copies.empty()) fault("the block ends with bulk copies that nobody waited for");
}

// ---- wgmma --------------------------------------------------------------------------------------------------------------

void wgmma_fence() { fiber->fenced = true; }
void wgmma_commit() { fiber->product_group++; }

void wgmma_issue(int* c, int count, const uint32_t (&a)[4], const void* tile, int step, Line line) {
    Fiber* self = fiber;
    if (!self->fenced) fault("bl_wgmma at %s:%u without bl_wgmma_fence", line.file_name(), line.line());
    if (step < 0 || step > 3) fault("bl_wgmma at %s:%u: step %d", line.file_name(), line.line(), step);
    const size_t bytes = (size_t)count * 2 * 128;
    if (bl_shared_place(tile) % 1024 || !is_shared(tile, bytes))
        fault("bl_wgmma at %s:%u: the tile is not 1024-byte aligned shared memory of %zu bytes", line.file_name(), line.line(), bytes);
    Meeting& m = meet(0xffffffffu, "bl_wgmma", line, {emu_pair(a[0], a[1]), emu_pair(a[2], a[3]), 0, 0});
    PendingProduct& p = self->products.emplace_back();
    p.c = c;
    p.fragment = a;
    memcpy(p.words, a, sizeof p.words);
    p.count = count;
    p.tile = (const unsigned char*)tile;
    p.step = step;
    p.group = self->product_group;
    const int g = self->lane / 4;
    for (int t = 0; t < 4; t++)
        for (int half = 0; half < 2; half++)
            for (int i = 0; i < 4; i++) {
                const uint64_t word = m.words[4 * g + t][half];
                p.a[0][16 * half + 4 * t + i] = (int8_t)(word >> (8 * i));
                p.a[1][16 * half + 4 * t + i] = (int8_t)(word >> (32 + 8 * i));
            }
    leave(m);
    p.first = true;
    for (const PendingProduct& other : self->products)
        if (&other != &p && other.c == c) p.first = false;
    if (p.first) {
        memcpy(p.before, c, sizeof(int) * (size_t)count);
        for (int i = 0; i < count; i++) c[i] = (int)0xA5A5A5A5;
    }
}

static void multiply(PendingProduct& p, int t) {
    if (p.first) memcpy(p.c, p.before, sizeof(int) * (size_t)p.count);
    for (int j = 0; j < p.count / 4; j++)
        for (int column = 0; column < 2; column++) {
            const int n = 8 * j + 2 * t + column;
            int16_t b[32];
            for (int half = 0; half < 2; half++) {
                const unsigned char* piece = p.tile + 128 * n + 16 * ((2 * p.step + half) ^ (n % 8));
                for (int i = 0; i < 16; i++) b[16 * half + i] = (int8_t)piece[i];
            }
            for (int row = 0; row < 2; row++) {
                int sum = 0;
                for (int k = 0; k < 32; k++) sum += p.a[row][k] * b[k];
                int& c = p.c[4 * j + 2 * row + column];
                c = (int)((uint32_t)c + (uint32_t)sum);
            }
        }
}

void wgmma_wait(int left, const uint32_t* a, int count, Line line) {
    auto& list = fiber->products;
    size_t done = 0;
    while (done < list.size() && list[done].group < fiber->product_group - left) {
        PendingProduct& p = list[done++];
        // A card reads the registers of A while it multiplies. A fragment that the wait is not told of has lost them by then.
        if (p.fragment < a || p.fragment + 4 > a + count)
            fault("bl_wgmma_wait at %s:%u is not given the fragments of a product that it waits for", line.file_name(), line.line());
        if (memcmp(p.fragment, p.words, sizeof p.words))
            fault("bl_wgmma_wait at %s:%u: fragments were written before the wait for their product", line.file_name(), line.line());
        multiply(p, fiber->lane % 4);
    }
    list.erase(list.begin(), list.begin() + (long)done);
    // What goes on still needs its registers' old values: the first of those left has them now.
    for (size_t i = 0; i < list.size(); i++) {
        bool earlier = false;
        for (size_t j = 0; j < i; j++) earlier |= list[j].c == list[i].c;
        if (earlier || list[i].first) continue;
        list[i].first = true;
        memcpy(list[i].before, list[i].c, sizeof(int) * (size_t)list[i].count);
        for (int k = 0; k < list[i].count; k++) list[i].c[k] = (int)0xA5A5A5A5;
    }
    fiber->fenced = false;
}

} // namespace emu
