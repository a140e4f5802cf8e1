// Images of modules: which of them this device and this driver take, and which kernels are in them. The code that
// runs is the kernel's source, compiled into this library; the image decides whether it may.
#include "driver.hpp"

#include <cstring>

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
