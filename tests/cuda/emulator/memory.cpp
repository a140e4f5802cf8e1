// Device memory: every allocation ends at a page that cannot be touched, is poisoned, and can be reached only
// while work of its own context runs. So the host cannot look into it, one device not into another's, and what was
// freed is gone.
#include "driver.hpp"

#include <sys/mman.h>

namespace emu::driver {

std::map<Pointer, Allocation> allocations;
std::map<char*, size_t> pinned;
static Context* open_for = nullptr;
constexpr size_t PAGE = 4096;

static void protect(const Allocation& a, bool accessible) {
    mprotect(a.pages + PAGE, a.reserved, accessible ? PROT_READ | PROT_WRITE : PROT_NONE);
}

void open_memory(Context* context) {
    if (open_for == context) return;
    close_memory();
    for (auto& [pointer, a] : allocations)
        if (a.context == context) protect(a, true);
    open_for = context;
}

void close_memory() {
    for (auto& [pointer, a] : allocations)
        if (a.context == open_for) protect(a, false);
    open_for = nullptr;
}

long long total_memory() { return choices.number("memory", 4ll << 30); }

long long used_memory(int device) {
    long long sum = 0;
    for (auto& [pointer, a] : allocations)
        if (a.context->device == device) sum += (long long)a.bytes;
    return sum;
}

Result allocate(Context* context, size_t bytes, Pointer* out) {
    if (bytes == 0 || !out) return INVALID_VALUE;
    const long long number = ++counters["allocations"], fails_from = choices.number("fail_allocation", 0);
    if (fails_from && number >= fails_from) return OUT_OF_MEMORY;
    if (used_memory(context->device) + (long long)bytes > total_memory()) return OUT_OF_MEMORY;
    const size_t rounded = (bytes + 15) / 16 * 16, reserved = (rounded + PAGE - 1) / PAGE * PAGE;
    char* pages = (char*)mmap(nullptr, reserved + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pages == MAP_FAILED) return OUT_OF_MEMORY;
    Allocation a{context, bytes, reserved, pages};
    protect(a, true);
    memset(pages + PAGE, settings.poison, reserved);
    if (open_for != context) protect(a, false);
    *out = (Pointer)(pages + PAGE + reserved - rounded);
    allocations[*out] = a;
    return SUCCESS;
}

/// The addresses stay reserved for ever: a stale pointer never means something else.
static void give_back(Pointer pointer, const Allocation& a) {
    protect(a, true);
    for (const unsigned char* p = (unsigned char*)pointer + a.bytes; p < (unsigned char*)a.pages + PAGE + a.reserved; p++)
        if (*p != settings.poison) fault("a byte past the end of an allocation of %zu bytes was written", a.bytes);
    for (const unsigned char* p = (unsigned char*)a.pages + PAGE; p < (unsigned char*)pointer; p++)
        if (*p != settings.poison) fault("a byte in front of an allocation of %zu bytes was written", a.bytes);
    madvise(a.pages + PAGE, a.reserved, MADV_DONTNEED);
    protect(a, false);
}

Result release(Context* context, Pointer pointer) {
    auto found = allocations.find(pointer);
    if (found == allocations.end() || found->second.context != context) return INVALID_VALUE;
    give_back(pointer, found->second);
    allocations.erase(found);
    return SUCCESS;
}

void release_all(Context* context) {
    for (auto i = allocations.begin(); i != allocations.end();) {
        if (i->second.context != context) {
            ++i;
            continue;
        }
        give_back(i->first, i->second);
        i = allocations.erase(i);
    }
}

const Allocation* find_memory(Context* context, Pointer pointer, size_t bytes) {
    auto next = allocations.upper_bound(pointer);
    if (next == allocations.begin()) return nullptr;
    auto& [start, a] = *std::prev(next);
    return a.context == context && pointer + bytes <= start + a.bytes && pointer + bytes >= pointer ? &a : nullptr;
}

} // namespace emu::driver
