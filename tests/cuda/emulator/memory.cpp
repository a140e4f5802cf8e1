// Device memory, and copies. Every allocation ends at a page that cannot be touched, is poisoned, and can be reached only
// while work of its own context runs. So the host cannot look into it, one device not into another's, and what was
// freed is gone.
#include "calls.hpp"

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
    // The driver promises multiples of 256; with 16, fewer bytes lie between an allocation's end and the page behind it.
    const size_t alignment = (size_t)choices.number("align", 256);
    const size_t rounded = (bytes + alignment - 1) / alignment * alignment, reserved = (rounded + PAGE - 1) / PAGE * PAGE;
    char* pages = (char*)mmap(nullptr, reserved + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pages == MAP_FAILED) return OUT_OF_MEMORY;
    Allocation a{context, bytes, rounded, reserved, pages};
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

CALL(cuMemGetInfo_v2, (size_t* free, size_t* total), (free, total)) {
    READY;
    *total = (size_t)total_memory();
    *free = (size_t)(total_memory() - used_memory(context->device));
    return SUCCESS;
}
CALL(cuMemAlloc_v2, (Pointer* out, size_t bytes), (out, bytes)) {
    READY;
    TRY(forbid_in_capture(context));
    return allocate(context, bytes, out);
}
CALL(cuMemFree_v2, (Pointer pointer), (pointer)) {
    READY;
    if (!pointer) return SUCCESS;
    TRY(forbid_in_capture(context));
    TRY(drain(context));
    return release(context, pointer);
}
CALL(cuMemAllocAsync, (Pointer* out, size_t bytes, void* handle), (out, bytes, handle)) {
    READY;
    Stream* stream;
    TRY(find_stream(context, handle, stream));
    if (stream->capture) return CAPTURE_UNSUPPORTED; // allowed in truth, as a node: more than the tests need
    return allocate(context, bytes, out);
}
CALL(cuMemFreeAsync, (Pointer pointer, void* handle), (pointer, handle)) {
    READY;
    Stream* stream;
    TRY(find_stream(context, handle, stream));
    if (stream->capture) return CAPTURE_UNSUPPORTED;
    if (!find_memory(context, pointer, 0)) return INVALID_VALUE;
    return enqueue(stream, [=] { return release(context, pointer); });
}
static Result allocate_pinned(void** out, size_t bytes) {
    READY;
    TRY(forbid_in_capture(context));
    if (!bytes || !out) return INVALID_VALUE;
    const long long number = ++counters["allocations"], fails_from = choices.number("fail_allocation", 0);
    if (fails_from && number >= fails_from) return OUT_OF_MEMORY;
    char* p = (char*)mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return OUT_OF_MEMORY;
    memset(p, settings.poison, bytes);
    pinned[p] = bytes;
    *out = p;
    return SUCCESS;
}
CALL(cuMemHostAlloc, (void** out, size_t bytes, unsigned), (out, bytes, 0)) { return allocate_pinned(out, bytes); }
CALL(cuMemAllocHost_v2, (void** out, size_t bytes), (out, bytes)) { return allocate_pinned(out, bytes); }
CALL(cuMemFreeHost, (void* p), (p)) {
    READY;
    TRY(forbid_in_capture(context));
    auto found = pinned.find((char*)p);
    if (found == pinned.end()) return INVALID_VALUE;
    TRY(drain(context));
    munmap(p, found->second);
    pinned.erase(found);
    return SUCCESS;
}
static bool is_pinned(const void* p) {
    auto next = pinned.upper_bound((char*)p);
    if (next == pinned.begin()) return false;
    auto& [start, bytes] = *std::prev(next);
    return (char*)p < start + bytes;
}

/// An asynchronous copy keeps to what the driver promises: pageable memory was read, or written, when the call
/// returns; pinned memory is touched when the stream gets there.
static Result copy_in(Context* context, Stream* stream, Pointer to, const void* from, size_t bytes) {
    if (!bytes) return SUCCESS;
    if (!find_memory(context, to, bytes)) return INVALID_VALUE;
    if (is_pinned(from) || stream->capture)
        return enqueue(stream, [=] { return memcpy((void*)to, from, bytes), SUCCESS; });
    auto staged = std::make_shared<std::vector<char>>((const char*)from, (const char*)from + bytes);
    return enqueue(stream, [=] { return memcpy((void*)to, staged->data(), bytes), SUCCESS; });
}
static Result copy_out(Context* context, Stream* stream, void* to, Pointer from, size_t bytes) {
    if (!bytes) return SUCCESS;
    if (!find_memory(context, from, bytes)) return INVALID_VALUE;
    TRY(enqueue(stream, [=] { return memcpy(to, (void*)from, bytes), SUCCESS; }));
    return is_pinned(to) || stream->capture ? SUCCESS : drain(stream, stream->issued);
}
static Result copy_within(Context* context, Stream* stream, Pointer to, Pointer from, size_t bytes) {
    if (!bytes) return SUCCESS;
    if (!find_memory(context, from, bytes) || !find_memory(context, to, bytes)) return INVALID_VALUE;
    return enqueue(stream, [=] { return memmove((void*)to, (void*)from, bytes), SUCCESS; });
}
static Result fill(Context* context, Stream* stream, Pointer to, unsigned value, size_t width, size_t count) {
    if (!count) return SUCCESS;
    if (!find_memory(context, to, width * count)) return INVALID_VALUE;
    return enqueue(stream, [=] {
        for (size_t i = 0; i < count; i++) memcpy((char*)to + i * width, &value, width);
        return SUCCESS;
    });
}

CALL(cuMemcpyHtoDAsync_v2, (Pointer to, const void* from, size_t bytes, void* handle), (to, from, bytes, handle)) {
    READY;
    Stream* stream;
    TRY(find_stream(context, handle, stream));
    return copy_in(context, stream, to, from, bytes);
}
CALL(cuMemcpyDtoHAsync_v2, (void* to, Pointer from, size_t bytes, void* handle), (to, from, bytes, handle)) {
    READY;
    Stream* stream;
    TRY(find_stream(context, handle, stream));
    return copy_out(context, stream, to, from, bytes);
}
CALL(cuMemcpyDtoDAsync_v2, (Pointer to, Pointer from, size_t bytes, void* handle), (to, from, bytes, handle)) {
    READY;
    Stream* stream;
    TRY(find_stream(context, handle, stream));
    return copy_within(context, stream, to, from, bytes);
}
CALL(cuMemsetD8Async, (Pointer to, unsigned char value, size_t count, void* handle), (to, value, count, handle)) {
    READY;
    Stream* stream;
    TRY(find_stream(context, handle, stream));
    return fill(context, stream, to, value, 1, count);
}
CALL(cuMemsetD32Async, (Pointer to, unsigned value, size_t count, void* handle), (to, value, count, handle)) {
    READY;
    Stream* stream;
    TRY(find_stream(context, handle, stream));
    return fill(context, stream, to, value, 4, count);
}

/// The synchronous forms go through the legacy stream, and wait for it.
#define ON_LEGACY(work)                                     \
    READY;                                                  \
    TRY(forbid_in_capture(context, true));                  \
    Stream* const stream = context->legacy.get();           \
    TRY(work);                                              \
    return drain(stream, stream->issued)
CALL(cuMemcpyHtoD_v2, (Pointer to, const void* from, size_t bytes), (to, from, bytes)) {
    ON_LEGACY(copy_in(context, stream, to, from, bytes));
}
CALL(cuMemcpyDtoH_v2, (void* to, Pointer from, size_t bytes), (to, from, bytes)) {
    ON_LEGACY(copy_out(context, stream, to, from, bytes));
}
CALL(cuMemcpyDtoD_v2, (Pointer to, Pointer from, size_t bytes), (to, from, bytes)) {
    ON_LEGACY(copy_within(context, stream, to, from, bytes));
}
CALL(cuMemsetD8_v2, (Pointer to, unsigned char value, size_t count), (to, value, count)) {
    ON_LEGACY(fill(context, stream, to, value, 1, count));
}
CALL(cuMemsetD32_v2, (Pointer to, unsigned value, size_t count), (to, value, count)) {
    ON_LEGACY(fill(context, stream, to, value, 4, count));
}

CALL(cuPointerGetAttribute, (void* out, int attribute, Pointer pointer), (out, attribute, pointer)) {
    TRY(started());
    Context* owner = nullptr;
    const Allocation* memory = nullptr;
    for (int i = 0; i < device_count() && !memory; i++) {
        owner = &primary(i);
        memory = find_memory(owner, pointer, 1);
    }
    const bool host = !memory && is_pinned((void*)pointer);
    if (!memory && !host) return INVALID_VALUE;
    switch (attribute) {
    case 1: *(void**)out = memory ? owner : current(); break;
    case 2: *(unsigned*)out = memory ? 2 : 1; break;
    case 3: *(Pointer*)out = pointer; break;
    case 9: *(int*)out = memory ? owner->device : 0; break;
    case 11: *(Pointer*)out = memory ? (Pointer)memory->pages + 4096 + memory->reserved - memory->rounded : pointer; break;
    case 12: *(size_t*)out = memory ? memory->bytes : 0; break;
    default: return INVALID_VALUE;
    }
    return SUCCESS;
}
