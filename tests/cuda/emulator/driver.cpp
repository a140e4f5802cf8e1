// The driver's functions, by the names and with the arguments of the CUDA 12.0 driver interface; and three of our own
// for the tests: bl_emu_set, bl_emu_get (driver.hpp: Choices, counters), bl_emu_fault.
#include "calls.hpp"

#include <dlfcn.h>

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
                                 "survive", "align", "fail_allocation", "lose_at_launch", "lose_code"};
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

int shared_of_multiprocessor(int cc) {
    return cc == 75 ? 64 : cc == 80 || cc == 87 ? 164 : cc == 90 || cc / 10 == 10 ? 228 : 100;
}
long long shared_optin(int device) {
    const int cc = capability(device);
    return 1024ll * (cc == 75 ? 64 : shared_of_multiprocessor(cc) - 1);
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

Result started() {
    if (choices.number("deinitialized", 0)) return DEINITIALIZED;
    return initialized ? SUCCESS : NOT_INITIALIZED;
}

Result ready(Context*& context) {
    if (const Result result = started()) return result;
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

/// What the last kernel did wrong, where the choice `survive` made a CUDA error of it.
EXPORT const char* bl_emu_fault() {
    std::lock_guard<std::recursive_mutex> guard(driver::lock);
    return last_fault().c_str();
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
    TRY(started());
    return device >= 0 && device < device_count() ? SUCCESS : INVALID_DEVICE;
}
CALL(cuDeviceGetCount, (int* count), (count)) {
    TRY(started());
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
    TRY(started());
    *out = current();
    return SUCCESS;
}
CALL(cuCtxSetCurrent, (void* handle), (handle)) {
    TRY(started());
    auto& stack = context_stack();
    if (handle) TRY(check_context(handle));
    if (!stack.empty()) stack.pop_back();
    if (handle) stack.push_back((Context*)handle);
    return SUCCESS;
}
CALL(cuCtxPushCurrent_v2, (void* handle), (handle)) {
    TRY(started());
    TRY(check_context(handle));
    context_stack().push_back((Context*)handle);
    return SUCCESS;
}
CALL(cuCtxPopCurrent_v2, (void** out), (out)) {
    TRY(started());
    if (context_stack().empty()) return INVALID_CONTEXT;
    if (out) *out = current();
    context_stack().pop_back();
    return SUCCESS;
}
CALL(cuCtxGetDevice, (int* device), (device)) {
    TRY(started());
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
