// Modules: images, which of them this device and this driver take, and which kernels are in them. The code that
// runs is the kernel's source, compiled into this library; the image decides whether it may.
#include "calls.hpp"

namespace emu::driver {

/// The newest PTX that a driver of this version reads, 10 * major + minor.
static int newest_ptx(int driver) {
    static const int table[][2] = {{13000, 90}, {12090, 88}, {12080, 87}, {12070, 86}, {12060, 85}, {12050, 85},
                                   {12040, 84}, {12030, 83}, {12020, 82}, {12010, 81}, {12000, 80}, {11080, 78},
                                   {11070, 77}, {11060, 76}, {11050, 75}, {11040, 74}, {11000, 70}};
    for (auto& [from, ptx] : table)
        if (driver >= from) return ptx;
    return 65;
}

static Result check_ptx(const char* text, int device, Module& module) {
    const char *version = strstr(text, ".version"), *target = strstr(text, ".target");
    int major = 0, minor = 0, sm = 0;
    char letter = 0;
    if (!version || sscanf(version, ".version %d.%d", &major, &minor) != 2) return INVALID_PTX;
    if (!target || sscanf(target, ".target sm_%d%c", &sm, &letter) < 1) return INVALID_PTX;
    if (10 * major + minor > newest_ptx((int)choices.number("driver", 12020))) return UNSUPPORTED_PTX_VERSION;
    module.is_ptx = true;
    module.target = sm;
    module.image = text;
    // "a" code runs on its own capability only; other PTX on all later ones.
    if (letter == 'a' ? sm != capability(device) : sm > capability(device)) return NO_BINARY_FOR_GPU;
    return SUCCESS;
}

/// An ELF file for the machine 190 whose flags name the sm.
static Result check_cubin(const unsigned char* file, int device, Module& module) {
    uint16_t machine, sections, section_size;
    uint32_t flags;
    uint64_t section_table;
    memcpy(&machine, file + 18, 2);
    memcpy(&section_table, file + 40, 8);
    memcpy(&flags, file + 48, 4);
    memcpy(&section_size, file + 58, 2);
    memcpy(&sections, file + 60, 2);
    if (file[4] != 2 || machine != 190) return INVALID_IMAGE;
    // CUDA 12 writes ABI 7, with the sm in the low byte; CUDA 13 writes ABI 8, which drivers before 580 refuse.
    if (file[8] != 7) return INVALID_IMAGE;
    const int sm = flags & 0xff, own = capability(device);
    const bool exact = flags & 0x800; // sm_90a and its like
    module.is_ptx = false;
    module.target = sm;
    module.image.assign((const char*)file, section_table + (size_t)sections * section_size);
    if (exact ? sm != own : sm / 10 != own / 10 || sm > own) return NO_BINARY_FOR_GPU;
    return SUCCESS;
}

Result load(Context* context, const void* image, Module** out) {
    if (!image || !out) return INVALID_VALUE;
    auto module = std::make_unique<Module>();
    module->context = context;
    const unsigned char* bytes = (const unsigned char*)image;
    const Result result = memcmp(bytes, "\177ELF", 4) == 0 ? check_cubin(bytes, context->device, *module)
                                                            : check_ptx((const char*)image, context->device, *module);
    if (result != SUCCESS) return result;
    for (const Kernel& kernel : kernels()) {
        const std::string name = module->is_ptx ? std::string(".entry ") + kernel.name + "("
                                                : std::string(".text.") + kernel.name + '\0';
        if (module->image.find(name) == std::string::npos) continue;
        auto function = std::make_unique<Function>();
        function->module = module.get();
        function->kernel = &kernel;
        functions.live.insert(function.get());
        module->functions[kernel.name] = std::move(function);
    }
    counters["modules"]++;
    counters[module->is_ptx ? "modules:ptx" : "modules:cubin"]++;
    counters["last_target"] = module->target;
    modules.live.insert(module.get());
    context->modules.insert(module.get());
    *out = module.release();
    return SUCCESS;
}

} // namespace emu::driver

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
