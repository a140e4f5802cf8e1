// The driver's functions, by the names and with the arguments of the CUDA 12.0 driver interface; and two of our own
// for the tests: bl_emu_set and bl_emu_get (driver.hpp: Choices, counters).
#include "driver.hpp"

#include <chrono>
#include <cstring>
#include <dlfcn.h>
#include <sys/mman.h>

namespace emu::driver {

std::recursive_mutex lock;
Choices choices;
std::map<std::string, long long> counters;
bool initialized = false;
Handles streams, events, modules, functions, graphs, graph_execs;

long long Choices::number(const char* key, long long otherwise) const {
    auto found = text.find(key);
    return found == text.end() || found->second.empty() ? otherwise : strtoll(found->second.c_str(), nullptr, 0);
}

/// Takes BL_EMU_* over, except what bl_emu_set has said already.
static void read_environment() {
    static const char* keys[] = {"devices", "cc", "init", "driver", "memory", "order", "seed", "poison", "lazy",
                                 "survive", "fail_allocation", "lose_at_launch", "lose_code"};
    for (const char* key : keys) {
        std::string name = "BL_EMU_";
        for (const char* c = key; *c; c++) name += (char)toupper(*c);
        const char* value = getenv(name.c_str());
        if (value && !choices.text.count(key)) choices.text[key] = value;
    }
}
static void apply_settings() {
    settings.order = (Order)choices.number("order", 0);
    settings.seed = (uint64_t)choices.number("seed", 1);
    settings.poison = (unsigned char)choices.number("poison", 0xA5);
    settings.survive = choices.number("survive", 0) != 0;
}

int device_count() { return (int)choices.number("devices", 1); }

/// "80", or one for each device: "80,75".
int capability(int device) {
    auto found = choices.text.find("cc");
    const char* list = found == choices.text.end() || found->second.empty() ? "80" : found->second.c_str();
    for (int i = 0; i < device && strchr(list, ','); i++) list = strchr(list, ',') + 1;
    return atoi(list);
}

Context& primary(int device) {
    static std::map<int, Context> all;
    Context& context = all[device];
    context.device = device;
    return context;
}

std::vector<Context*>& context_stack() {
    static thread_local std::vector<Context*> stack;
    return stack;
}
Context* current() { return context_stack().empty() ? nullptr : context_stack().back(); }

Result ready(Context*& context) {
    if (!initialized) return NOT_INITIALIZED;
    context = current();
    if (!context) return INVALID_CONTEXT;
    if (context->retained == 0) return CONTEXT_IS_DESTROYED;
    return context->lost;
}

static const struct { int code; const char *name, *text; } results[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {DEINITIALIZED, "CUDA_ERROR_DEINITIALIZED", "driver shutting down"},
    {34, "CUDA_ERROR_STUB_LIBRARY", "CUDA driver is a stub library"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {INVALID_PTX, "CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed"},
    {UNSUPPORTED_PTX_VERSION, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "the provided PTX was compiled with an unsupported toolchain"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {LAUNCH_OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {CONTEXT_IS_DESTROYED, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "system has unsupported display driver / cuda driver combination"},
    {804, "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE", "forward compatibility was attempted on non supported HW"},
    {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
    {CAPTURE_UNMATCHED, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not ended in the same stream as it began"},
    {CAPTURE_UNJOINED, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"},
    {CAPTURE_ISOLATION, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "dependency created on uncaptured work in another stream"},
    {CAPTURE_IMPLICIT, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT", "operation would make the legacy stream depend on a capturing blocking stream"},
    {CAPTURED_EVENT, "CUDA_ERROR_CAPTURED_EVENT", "operation not permitted on an event last recorded in a capturing stream"},
    {UNKNOWN, "CUDA_ERROR_UNKNOWN", "unknown error"},
};
const char* result_name(int code) {
    for (auto& r : results)
        if (r.code == code) return r.name;
    return nullptr;
}
const char* result_text(int code) {
    for (auto& r : results)
        if (r.code == code) return r.text;
    return nullptr;
}

} // namespace emu::driver

using namespace emu;
using namespace emu::driver;

#define EXPORT extern "C" __attribute__((visibility("default")))
/// A driver function: exported, counted, under the lock. CALL(name, (parameters), (arguments)) { body }
#define CALL(name, parameters, arguments)                                                 \
    static Result body_##name parameters;                                                 \
    EXPORT int name parameters {                                                          \
        std::lock_guard<std::recursive_mutex> guard(driver::lock);                        \
        counters["calls"]++;                                                              \
        counters["calls:" #name]++;                                                       \
        return body_##name arguments;                                                     \
    }                                                                                     \
    static Result body_##name parameters
#define TRY(call)                                  \
    do {                                            \
        const Result try_result = (call);           \
        if (try_result != SUCCESS) return try_result; \
    } while (0)
#define READY          \
    Context* context;  \
    TRY(ready(context))

// ---- Of the tests -----------------------------------------------------------------------------------------------------

/// Chooses a behaviour; null takes the choice back. Settings of the engine act at once, others at the next call.
EXPORT void bl_emu_set(const char* key, const char* value) {
    std::lock_guard<std::recursive_mutex> guard(driver::lock);
    choices.text[key] = value ? value : "";
    apply_settings();
}
EXPORT long long bl_emu_get(const char* key) {
    std::lock_guard<std::recursive_mutex> guard(driver::lock);
    const std::string name = key;
    if (name == "live_allocations") return (long long)allocations.size();
    if (name == "live_bytes") {
        long long sum = 0;
        for (auto& [pointer, a] : allocations) sum += (long long)a.bytes;
        return sum;
    }
    if (name == "pinned") return (long long)pinned.size();
    if (name == "retained") {
        long long sum = 0;
        for (int i = 0; i < 16; i++) sum += primary(i).retained;
        return sum;
    }
    if (name == "live_streams") return (long long)streams.live.size();
    if (name == "live_modules") return (long long)modules.live.size();
    if (name == "live_events") return (long long)events.live.size();
    if (name == "queued") {
        long long sum = 0;
        for (int i = 0; i < 16; i++)
            for (Stream* s : primary(i).streams) sum += (long long)s->queue.size();
        return sum;
    }
    auto found = counters.find(name);
    return found == counters.end() ? 0 : found->second;
}

// ---- The driver and its devices ------------------------------------------------------------------------------------------

CALL(cuInit, (unsigned flags), (flags)) {
    read_environment();
    apply_settings();
    if (flags) return INVALID_VALUE;
    const int code = (int)choices.number("init", 0);
    if (code) return (Result)code;
    if (device_count() == 0) return NO_DEVICE;
    initialized = true;
    return SUCCESS;
}
CALL(cuDriverGetVersion, (int* version), (version)) {
    read_environment();
    *version = (int)choices.number("driver", 12020);
    return SUCCESS;
}
static Result check_device(int device) {
    if (!initialized) return NOT_INITIALIZED;
    return device >= 0 && device < device_count() ? SUCCESS : INVALID_DEVICE;
}
CALL(cuDeviceGetCount, (int* count), (count)) {
    if (!initialized) return NOT_INITIALIZED;
    *count = device_count();
    return SUCCESS;
}
CALL(cuDeviceGet, (int* device, int ordinal), (device, ordinal)) {
    TRY(check_device(ordinal));
    *device = ordinal;
    return SUCCESS;
}
CALL(cuDeviceGetName, (char* name, int size, int device), (name, size, device)) {
    TRY(check_device(device));
    snprintf(name, (size_t)size, "Emulated GPU %d", device);
    return SUCCESS;
}
static Result uuid(unsigned char* out, int device) {
    TRY(check_device(device));
    for (int i = 0; i < 16; i++) out[i] = (unsigned char)(0xB0 + device + i);
    return SUCCESS;
}
CALL(cuDeviceGetUuid, (unsigned char* out, int device), (out, device)) { return uuid(out, device); }
CALL(cuDeviceGetUuid_v2, (unsigned char* out, int device), (out, device)) { return uuid(out, device); }
CALL(cuDeviceTotalMem_v2, (size_t* bytes, int device), (bytes, device)) {
    TRY(check_device(device));
    *bytes = (size_t)total_memory();
    return SUCCESS;
}

/// Shared memory of a multiprocessor, and what a block may ask for, in KiB.
static int shared_of_multiprocessor(int cc) {
    return cc == 75 ? 64 : cc == 80 || cc == 87 ? 164 : cc == 90 || cc / 10 == 10 ? 228 : 100;
}
static long long shared_optin(int device) {
    const int cc = capability(device);
    return 1024ll * (cc == 75 ? 64 : shared_of_multiprocessor(cc) - 1);
}
static int multiprocessors(int cc) { return cc == 75 ? 40 : cc == 80 ? 108 : cc == 86 ? 84 : 132; }

CALL(cuDeviceGetAttribute, (int* value, int attribute, int device), (value, attribute, device)) {
    TRY(check_device(device));
    const int cc = capability(device);
    switch (attribute) {
    case 1: *value = 1024; break;             // threads of a block
    case 2: case 3: *value = 1024; break;     // block's extent x, y
    case 4: *value = 64; break;               // and z
    case 5: *value = 2147483647; break;       // grid's extent x
    case 6: case 7: *value = 65535; break;    // y, z
    case 8: *value = 48 * 1024; break;        // shared memory of a block, without asking
    case 9: *value = 64 * 1024; break;        // constant memory
    case 10: *value = 32; break;              // warp
    case 12: case 82: *value = 65536; break;  // registers of a block, a multiprocessor
    case 13: *value = 1410000; break;         // clock, kHz
    case 16: *value = multiprocessors(cc); break;
    case 36: *value = 1215000; break;         // memory clock, kHz
    case 37: *value = 5120; break;            // memory bus, bits
    case 38: *value = 40 << 20; break;        // L2
    case 39: *value = cc == 75 ? 1024 : cc == 86 || cc == 89 || cc >= 120 ? 1536 : 2048; break; // threads of a multiprocessor
    case 75: *value = cc / 10; break;
    case 76: *value = cc % 10; break;
    case 81: *value = shared_of_multiprocessor(cc) * 1024; break;
    case 97: *value = (int)shared_optin(device); break;
    case 41: case 78: case 115: *value = 1; break; // unified addresses, priorities, memory pools
    default: *value = 0;
    }
    return SUCCESS;
}

// ---- Contexts ----------------------------------------------------------------------------------------------------------------

CALL(cuDevicePrimaryCtxRetain, (void** out, int device), (out, device)) {
    TRY(check_device(device));
    Context& c = primary(device);
    if (c.lost) return c.lost;
    if (c.retained++ == 0) {
        c.legacy = std::make_unique<Stream>(Stream{&c, true, {}});
        c.streams = {c.legacy.get()};
    }
    *out = &c;
    return SUCCESS;
}
CALL(cuDevicePrimaryCtxRelease_v2, (int device), (device)) {
    TRY(check_device(device));
    Context& c = primary(device);
    if (c.retained == 0) return INVALID_CONTEXT;
    if (--c.retained) return SUCCESS;
    drain(&c);
    for (Module* module : c.modules) {
        for (auto& [name, function] : module->functions) functions.live.erase(function.get());
        modules.live.erase(module);
        delete module;
    }
    c.modules.clear();
    for (Stream* stream : c.streams)
        if (stream != c.legacy.get()) {
            streams.live.erase(stream);
            delete stream;
        }
    c.streams.clear();
    release_all(&c);
    c.lost = SUCCESS;
    return SUCCESS;
}
CALL(cuDevicePrimaryCtxGetState, (int device, unsigned* flags, int* active), (device, flags, active)) {
    TRY(check_device(device));
    if (flags) *flags = 0;
    if (active) *active = primary(device).retained > 0;
    return SUCCESS;
}
static Result check_context(void* handle) {
    for (int i = 0; i < device_count(); i++)
        if (handle == &primary(i)) return primary(i).retained ? SUCCESS : CONTEXT_IS_DESTROYED;
    return INVALID_CONTEXT;
}
CALL(cuCtxGetCurrent, (void** out), (out)) {
    if (!initialized) return NOT_INITIALIZED;
    *out = current();
    return SUCCESS;
}
CALL(cuCtxSetCurrent, (void* handle), (handle)) {
    if (!initialized) return NOT_INITIALIZED;
    auto& stack = context_stack();
    if (handle) TRY(check_context(handle));
    if (!stack.empty()) stack.pop_back();
    if (handle) stack.push_back((Context*)handle);
    return SUCCESS;
}
CALL(cuCtxPushCurrent_v2, (void* handle), (handle)) {
    if (!initialized) return NOT_INITIALIZED;
    TRY(check_context(handle));
    context_stack().push_back((Context*)handle);
    return SUCCESS;
}
CALL(cuCtxPopCurrent_v2, (void** out), (out)) {
    if (!initialized) return NOT_INITIALIZED;
    if (context_stack().empty()) return INVALID_CONTEXT;
    if (out) *out = current();
    context_stack().pop_back();
    return SUCCESS;
}
CALL(cuCtxGetDevice, (int* device), (device)) {
    if (!initialized) return NOT_INITIALIZED;
    if (!current()) return INVALID_CONTEXT;
    *device = current()->device;
    return SUCCESS;
}
CALL(cuCtxSynchronize, (), ()) {
    READY;
    TRY(forbid_in_capture(context));
    return drain(context);
}
CALL(cuCtxGetStreamPriorityRange, (int* least, int* greatest), (least, greatest)) {
    READY;
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return SUCCESS;
}

// ---- Memory --------------------------------------------------------------------------------------------------------------------

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
    if (!initialized) return NOT_INITIALIZED;
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
    case 11: *(Pointer*)out = memory ? (Pointer)memory->pages + 4096 + memory->reserved - (memory->bytes + 15) / 16 * 16 : pointer; break;
    case 12: *(size_t*)out = memory ? memory->bytes : 0; break;
    default: return INVALID_VALUE;
    }
    return SUCCESS;
}

// ---- Modules and launches -------------------------------------------------------------------------------------------------------

CALL(cuModuleLoadData, (void** out, const void* image), (out, image)) {
    READY;
    TRY(forbid_in_capture(context));
    return load(context, image, (Module**)out);
}
CALL(cuModuleLoadDataEx, (void** out, const void* image, unsigned, void*, void*), (out, image, 0, nullptr, nullptr)) {
    READY;
    TRY(forbid_in_capture(context));
    return load(context, image, (Module**)out);
}
CALL(cuModuleUnload, (void* handle), (handle)) {
    READY;
    TRY(forbid_in_capture(context));
    if (!modules.has(handle)) return INVALID_HANDLE;
    Module* module = (Module*)handle;
    if (module->context != context) return INVALID_HANDLE;
    TRY(drain(context));
    for (auto& [name, function] : module->functions) functions.live.erase(function.get());
    modules.live.erase(module);
    context->modules.erase(module);
    delete module;
    return SUCCESS;
}
CALL(cuModuleGetFunction, (void** out, void* handle, const char* name), (out, handle, name)) {
    READY;
    if (!modules.has(handle)) return INVALID_HANDLE;
    Module* module = (Module*)handle;
    auto found = module->functions.find(name);
    if (found == module->functions.end()) return NOT_FOUND;
    *out = found->second.get();
    return SUCCESS;
}
CALL(cuModuleGetLoadingMode, (int* mode), (mode)) {
    *mode = 2; // lazy
    return SUCCESS;
}
static Result load_function(void* handle) {
    READY;
    if (!functions.has(handle)) return INVALID_HANDLE;
    Function* f = (Function*)handle;
    if (!f->loaded) TRY(forbid_in_capture(context));
    f->loaded = true;
    return SUCCESS;
}
CALL(cuFuncGetAttribute, (int* value, int attribute, void* handle), (value, attribute, handle)) {
    TRY(load_function(handle));
    Function* f = (Function*)handle;
    switch (attribute) {
    case 0: *value = (int)f->kernel->max_threads; break;
    case 4: *value = 64; break; // registers
    case 5: *value = f->module->target; break;
    case 6: *value = capability(f->module->context->device); break;
    case 8: *value = (int)f->max_dynamic_shared; break;
    default: *value = 0;
    }
    return SUCCESS;
}
CALL(cuFuncSetAttribute, (void* handle, int attribute, int value), (handle, attribute, value)) {
    TRY(load_function(handle));
    Function* f = (Function*)handle;
    if (attribute == 9) return SUCCESS; // a wish about the split between L1 and shared memory
    if (attribute != 8 || value < 0 || value > shared_optin(f->module->context->device)) return INVALID_VALUE;
    f->max_dynamic_shared = value;
    return SUCCESS;
}
CALL(cuFuncSetCacheConfig, (void* handle, int), (handle, 0)) { return functions.has(handle) ? SUCCESS : INVALID_HANDLE; }
CALL(cuOccupancyMaxActiveBlocksPerMultiprocessor, (int* blocks, void* handle, int threads, size_t shared),
     (blocks, handle, threads, shared)) {
    TRY(load_function(handle));
    const int cc = capability(((Function*)handle)->module->context->device);
    const int by_threads = threads > 0 ? 2048 / threads : 0;
    const int by_shared = shared ? (int)((size_t)shared_of_multiprocessor(cc) * 1024 / (shared + 1024)) : 32;
    *blocks = std::min(std::min(by_threads, by_shared), 32);
    return SUCCESS;
}

/// Parameters as they were at the launch.
struct Parameters {
    std::vector<char> bytes;
    std::vector<size_t> places;
};

static Result launch_kernel(void* handle, Extent grid, Extent block, size_t shared, void* stream_handle, void** arguments) {
    READY;
    if (!functions.has(handle)) return INVALID_HANDLE;
    Function* f = (Function*)handle;
    if (f->module->context != context) return INVALID_HANDLE;
    Stream* stream;
    TRY(find_stream(context, stream_handle, stream));
    const unsigned long long threads = (unsigned long long)block.x * block.y * block.z;
    if (!grid.x || !grid.y || !grid.z || grid.x > 2147483647u || grid.y > 65535 || grid.z > 65535) return INVALID_VALUE;
    if (!threads || threads > 1024 || threads > f->kernel->max_threads || block.z > 64) return INVALID_VALUE;
    if ((long long)shared > f->max_dynamic_shared) return INVALID_VALUE;
    if (!f->kernel->sizes.empty() && !arguments) return INVALID_VALUE;
    if (!f->loaded && stream->capture) {
        stream->capture->broken = true;
        return CAPTURE_UNSUPPORTED;
    }
    f->loaded = true;
    auto parameters = std::make_shared<Parameters>();
    for (size_t i = 0; i < f->kernel->sizes.size(); i++) {
        size_t place = (parameters->bytes.size() + 63) / 64 * 64;
        parameters->bytes.resize(place + f->kernel->sizes[i]);
        memcpy(&parameters->bytes[place], arguments[i], f->kernel->sizes[i]);
        parameters->places.push_back(place);
    }
    const Kernel* kernel = f->kernel;
    counters["enqueued"]++;
    counters[std::string("enqueued:") + kernel->name]++;
    return enqueue(stream, [=]() -> Result {
        const long long number = ++counters["launches"];
        if (number == choices.number("lose_at_launch", 0)) return (Result)choices.number("lose_code", ILLEGAL_ADDRESS);
        counters[std::string("launches:") + kernel->name]++;
        // One copy for each run: a kernel may write to its parameters.
        std::vector<char> bytes(parameters->bytes.size() + 64);
        char* base = (char*)(((uintptr_t)bytes.data() + 63) / 64 * 64);
        memcpy(base, parameters->bytes.data(), parameters->bytes.size());
        std::vector<void*> addresses;
        for (size_t place : parameters->places) addresses.push_back(base + place);
        return emu::launch(*kernel, grid, block, shared, addresses.data()) ? SUCCESS : LAUNCH_FAILED;
    });
}
CALL(cuLaunchKernel,
     (void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
      void* stream, void** arguments, void** extra),
     (function, gx, gy, gz, bx, by, bz, shared, stream, arguments, extra)) {
    if (extra) return NOT_SUPPORTED;
    return launch_kernel(function, {gx, gy, gz}, {bx, by, bz}, shared, stream, arguments);
}
struct LaunchAttribute {
    int id;
    char pad[4];
    union {
        char bytes[64];
        int value;
    };
};
struct LaunchConfig {
    unsigned gx, gy, gz, bx, by, bz, shared;
    void* stream;
    LaunchAttribute* attributes;
    unsigned count;
};
CALL(cuLaunchKernelEx, (const LaunchConfig* c, void* function, void** arguments, void** extra),
     (c, function, arguments, extra)) {
    if (!c || extra) return INVALID_VALUE;
    READY;
    for (unsigned i = 0; i < c->count; i++)
        if (c->attributes[i].id == 6 && c->attributes[i].value && capability(context->device) < 90) return NOT_SUPPORTED;
    return launch_kernel(function, {c->gx, c->gy, c->gz}, {c->bx, c->by, c->bz}, c->shared, c->stream, arguments);
}

// ---- Streams and events ----------------------------------------------------------------------------------------------------------

static Result create_stream(void** out, unsigned flags) {
    READY;
    if (flags > 1) return INVALID_VALUE;
    Stream* stream = new Stream{context, flags == 0, {}};
    streams.live.insert(stream);
    context->streams.insert(stream);
    *out = stream;
    return SUCCESS;
}
CALL(cuStreamCreate, (void** out, unsigned flags), (out, flags)) { return create_stream(out, flags); }
CALL(cuStreamCreateWithPriority, (void** out, unsigned flags, int), (out, flags, 0)) { return create_stream(out, flags); }
CALL(cuStreamDestroy_v2, (void* handle), (handle)) {
    if (!initialized) return NOT_INITIALIZED;
    if (!streams.has(handle)) return INVALID_HANDLE;
    Stream* stream = (Stream*)handle;
    drain(stream, stream->issued);
    stream->context->streams.erase(stream);
    streams.live.erase(stream);
    if (stream->capture) stream->capture->broken = true;
    delete stream;
    return SUCCESS;
}
CALL(cuStreamSynchronize, (void* handle), (handle)) {
    READY;
    Stream* stream;
    TRY(find_stream(context, handle, stream));
    if (stream->capture) {
        stream->capture->broken = true;
        return CAPTURE_UNSUPPORTED;
    }
    TRY(forbid_in_capture(context, stream == context->legacy.get()));
    return drain(stream, stream->issued);
}
CALL(cuStreamQuery, (void* handle), (handle)) {
    READY;
    Stream* stream;
    TRY(find_stream(context, handle, stream));
    TRY(forbid_in_capture(context, stream == context->legacy.get()));
    if (stream->queue.empty()) return SUCCESS;
    TRY(drain(stream, stream->done + 1)); // who asks again and again gets there
    return stream->queue.empty() ? SUCCESS : NOT_READY;
}
CALL(cuStreamGetCtx, (void* handle, void** out), (handle, out)) {
    READY;
    if ((uintptr_t)handle <= 2) {
        *out = context;
        return SUCCESS;
    }
    if (!streams.has(handle)) return INVALID_HANDLE;
    *out = ((Stream*)handle)->context;
    return SUCCESS;
}
CALL(cuStreamGetFlags, (void* handle, unsigned* flags), (handle, flags)) {
    READY;
    Stream* stream;
    TRY(find_stream(context, handle, stream));
    *flags = !stream->blocking;
    return SUCCESS;
}

CALL(cuEventCreate, (void** out, unsigned), (out, 0)) {
    READY;
    Event* event = new Event;
    event->context = context;
    events.live.insert(event);
    *out = event;
    return SUCCESS;
}
CALL(cuEventDestroy_v2, (void* handle), (handle)) {
    if (!events.has(handle)) return INVALID_HANDLE;
    events.live.erase(handle);
    delete (Event*)handle;
    return SUCCESS;
}
CALL(cuEventRecord, (void* handle, void* stream_handle), (handle, stream_handle)) {
    READY;
    Stream* stream;
    TRY(find_stream(context, stream_handle, stream));
    if (!events.has(handle)) return INVALID_HANDLE;
    Event* event = (Event*)handle;
    if (event->context != context) return INVALID_HANDLE;
    std::shared_ptr<double> time = event->time;
    TRY(enqueue(stream, [=] {
        *time = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
        return SUCCESS;
    }));
    event->stream = stream;
    event->place = stream->issued;
    event->capture = stream->capture;
    return SUCCESS;
}
CALL(cuEventSynchronize, (void* handle), (handle)) {
    READY;
    if (!events.has(handle)) return INVALID_HANDLE;
    Event* event = (Event*)handle;
    if (event->capture && captures.count(event->capture)) return CAPTURED_EVENT;
    TRY(forbid_in_capture(context));
    if (!event->stream || (!streams.has(event->stream) && event->stream != event->context->legacy.get())) return SUCCESS;
    return drain(event->stream, event->place);
}
CALL(cuEventQuery, (void* handle), (handle)) {
    READY;
    if (!events.has(handle)) return INVALID_HANDLE;
    Event* event = (Event*)handle;
    if (!event->stream || (!streams.has(event->stream) && event->stream != event->context->legacy.get())) return SUCCESS;
    if (event->stream->done >= event->place) return SUCCESS;
    TRY(drain(event->stream, event->stream->done + 1));
    return event->stream->done >= event->place ? SUCCESS : NOT_READY;
}
CALL(cuEventElapsedTime, (float* ms, void* from, void* to), (ms, from, to)) {
    READY;
    if (!events.has(from) || !events.has(to)) return INVALID_HANDLE;
    for (void* handle : {from, to}) {
        Event* event = (Event*)handle;
        if (!event->stream) return INVALID_HANDLE;
        if (streams.has(event->stream) && event->stream->done < event->place) return NOT_READY;
    }
    *ms = (float)(*((Event*)to)->time - *((Event*)from)->time);
    return SUCCESS;
}
CALL(cuStreamWaitEvent, (void* stream_handle, void* handle, unsigned), (stream_handle, handle, 0)) {
    READY;
    Stream* stream;
    TRY(find_stream(context, stream_handle, stream));
    if (!events.has(handle)) return INVALID_HANDLE;
    Event* event = (Event*)handle;
    if (!event->stream) return SUCCESS;
    if (event->capture && captures.count(event->capture)) { // the waiting stream joins the capture
        if (stream->capture && stream->capture != event->capture) return CAPTURE_ISOLATION;
        stream->capture = event->capture;
        event->capture->streams.insert(stream);
        return SUCCESS;
    }
    if (stream->capture) return CAPTURE_ISOLATION;
    TRY(enqueue(stream, [] { return SUCCESS; }));
    if (!stream->queue.empty() && (streams.has(event->stream) || event->stream == context->legacy.get()))
        stream->queue.back().after.push_back({event->stream, event->place});
    return SUCCESS;
}

// ---- Captures and graphs -----------------------------------------------------------------------------------------------------------

CALL(cuStreamBeginCapture_v2, (void* handle, int mode), (handle, mode)) {
    READY;
    Stream* stream;
    TRY(find_stream(context, handle, stream));
    if (stream == context->legacy.get()) return CAPTURE_UNSUPPORTED;
    if (stream->capture || mode < 0 || mode > 2) return INVALID_VALUE;
    Capture* capture = new Capture{stream, mode, std::this_thread::get_id(), {}, {stream}};
    captures.insert(capture);
    stream->capture = capture;
    return SUCCESS;
}
CALL(cuStreamEndCapture, (void* handle, void** out), (handle, out)) {
    READY;
    Stream* stream;
    TRY(find_stream(context, handle, stream));
    Capture* capture = stream->capture;
    if (!capture) return INVALID_VALUE;
    if (capture->origin != stream) return CAPTURE_UNMATCHED;
    for (Stream* member : capture->streams) member->capture = nullptr;
    captures.erase(capture);
    const bool broken = capture->broken;
    *out = nullptr;
    if (!broken) {
        Graph* graph = new Graph{std::move(capture->work)};
        graphs.live.insert(graph);
        *out = graph;
    }
    delete capture;
    return broken ? CAPTURE_INVALIDATED : SUCCESS;
}
CALL(cuStreamIsCapturing, (void* handle, int* status), (handle, status)) {
    READY;
    Stream* stream;
    TRY(find_stream(context, handle, stream));
    if (stream == context->legacy.get())
        for (Capture* capture : captures)
            for (Stream* member : capture->streams)
                if (member->context == context && member->blocking) {
                    capture->broken = true;
                    return CAPTURE_IMPLICIT;
                }
    *status = !stream->capture ? 0 : stream->capture->broken ? 2 : 1;
    return SUCCESS;
}
CALL(cuThreadExchangeStreamCaptureMode, (int* mode), (mode)) {
    static thread_local int own = 0;
    std::swap(*mode, own);
    return SUCCESS;
}
CALL(cuGraphGetNodes, (void* handle, void**, size_t* count), (handle, nullptr, count)) {
    if (!graphs.has(handle)) return INVALID_VALUE;
    *count = ((Graph*)handle)->work.size();
    return SUCCESS;
}
static Result instantiate(void** out, void* handle) {
    READY;
    if (!graphs.has(handle)) return INVALID_VALUE;
    GraphExec* exec = new GraphExec{*(Graph*)handle, context};
    graph_execs.live.insert(exec);
    *out = exec;
    return SUCCESS;
}
CALL(cuGraphInstantiate, (void** out, void* graph, unsigned long long), (out, graph, 0)) { return instantiate(out, graph); }
CALL(cuGraphInstantiateWithFlags, (void** out, void* graph, unsigned long long), (out, graph, 0)) {
    return instantiate(out, graph);
}
CALL(cuGraphInstantiate_v2, (void** out, void* graph, void**, char*, size_t), (out, graph, nullptr, nullptr, 0)) {
    return instantiate(out, graph);
}
CALL(cuGraphLaunch, (void* handle, void* stream_handle), (handle, stream_handle)) {
    READY;
    Stream* stream;
    TRY(find_stream(context, stream_handle, stream));
    if (!graph_execs.has(handle)) return INVALID_VALUE;
    GraphExec* exec = (GraphExec*)handle;
    if (exec->context != context) return INVALID_VALUE;
    for (auto& work : exec->graph.work) TRY(enqueue(stream, work));
    return SUCCESS;
}
CALL(cuGraphDestroy, (void* handle), (handle)) {
    if (!graphs.has(handle)) return INVALID_VALUE;
    graphs.live.erase(handle);
    delete (Graph*)handle;
    return SUCCESS;
}
CALL(cuGraphExecDestroy, (void* handle), (handle)) {
    if (!graph_execs.has(handle)) return INVALID_VALUE;
    graph_execs.live.erase(handle);
    delete (GraphExec*)handle;
    return SUCCESS;
}

// ---- Errors and symbols ----------------------------------------------------------------------------------------------------------

CALL(cuGetErrorName, (int code, const char** out), (code, out)) {
    *out = result_name(code);
    return *out ? SUCCESS : INVALID_VALUE;
}
CALL(cuGetErrorString, (int code, const char** out), (code, out)) {
    *out = result_text(code);
    return *out ? SUCCESS : INVALID_VALUE;
}
static Result find_symbol(const char* name, void** out) {
    static void* self = [] {
        Dl_info info;
        dladdr((void*)bl_emu_set, &info);
        return dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    }();
    *out = dlsym(self, (std::string(name) + "_v2").c_str());
    if (!*out) *out = dlsym(self, name);
    return *out ? SUCCESS : NOT_FOUND;
}
CALL(cuGetProcAddress, (const char* name, void** out, int, unsigned long long), (name, out, 0, 0)) {
    return find_symbol(name, out);
}
CALL(cuGetProcAddress_v2, (const char* name, void** out, int, unsigned long long, int* status), (name, out, 0, 0, status)) {
    const Result result = find_symbol(name, out);
    if (status) *status = result == SUCCESS ? 0 : 1;
    return result;
}
