// Each wrapper of kernels/platform.cuh on a card against its emulated body: both run tests/cuda/probes.cu on the same
// numbers, and must give the same.
//     probes EMULATOR_FOLDER IMAGE_FOLDER
// IMAGE_FOLDER holds probes.<target>.cubin and .ptx, as `cargo xtask kernels --raw IMAGE_FOLDER` wrote them. All
// images that fit the card are run: machine code and PTX, of its own capability and of earlier ones.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

typedef unsigned long long Pointer;
typedef std::vector<uint32_t> Words;

/// A driver: the machine's or the emulated one.
struct Driver {
    void* library = nullptr;
    void* context = nullptr;
    template <class... A> int raw(const char* name, A... arguments) const {
        void* f = dlsym(library, name);
        if (!f) {
            fprintf(stderr, "%s is missing\n", name);
            exit(1);
        }
        return ((int (*)(A...))f)(arguments...);
    }
    template <class... A> void operator()(const char* name, A... arguments) const {
        if (const int result = raw(name, arguments...)) {
            fprintf(stderr, "%s: error %d\n", name, result);
            exit(1);
        }
    }
    void start() {
        (*this)("cuInit", 0u);
        (*this)("cuDevicePrimaryCtxRetain", &context, 0);
    }
    /// What a probe of an image writes, one word of parameters after the two addresses.
    Words run(void* module, const char* kernel, const Words& in, size_t words_out, unsigned blocks, unsigned threads,
              unsigned shared, int which) const {
        struct { Pointer in, out; } p;
        Words out(words_out);
        void* function;
        (*this)("cuModuleGetFunction", &function, module, kernel);
        (*this)("cuMemAlloc_v2", &p.in, in.size() * 4);
        (*this)("cuMemAlloc_v2", &p.out, words_out * 4);
        (*this)("cuMemcpyHtoD_v2", p.in, (const void*)in.data(), in.size() * 4);
        (*this)("cuMemsetD8_v2", p.out, (unsigned char)0, words_out * 4);
        void* arguments[] = {&p, &which};
        (*this)("cuLaunchKernel", function, blocks, 1u, 1u, threads, 1u, 1u, shared, (void*)nullptr, (void**)arguments,
                (void**)nullptr);
        (*this)("cuMemcpyDtoH_v2", (void*)out.data(), p.out, words_out * 4);
        (*this)("cuMemFree_v2", p.in);
        (*this)("cuMemFree_v2", p.out);
        return out;
    }
};

static std::string read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

/// Floats worth converting: all exponents, halves between neighbours of f16 and bf16, infinities, NaN.
static uint32_t awkward(std::mt19937& random) {
    const uint32_t word = random();
    switch (random() % 5) {
    case 0: return (word & 0xffffe000u) | 0x1000; // half-way in f16
    case 1: return (word & 0xffff0000u) | 0x8000; // half-way in bf16
    case 2: return (word & 0x80000000u) | (0x33000000u + (random() % 0x16000000u)); // f16's range, its subnormals
    case 3: return (word & 0x80000000u) | 0x7f800000u | (random() % 2 ? word & 0x7fffff : 0);
    default: return word;
    }
}

int main(int count, char** words) {
    if (count != 3) return 2;
    Driver card, emulated;
    // The card's first: the emulated one bears the same name.
    card.library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!card.library || dlsym(card.library, "bl_emu_set") || card.raw("cuInit", 0u)) {
        printf("probes: NOT RUN: no driver with a device\n");
        return 77;
    }
    setenv("BL_EMU_CC", "90", 1);
    emulated.library = dlopen((std::string(words[1]) + "/libcuda.so.1").c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!emulated.library) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    card.start();
    emulated.start();
    card("cuCtxSetCurrent", card.context);
    emulated("cuCtxSetCurrent", emulated.context);
    int major = 0, minor = 0, images = 0, wrong = 0;
    card("cuDeviceGetAttribute", &major, 75, 0);
    card("cuDeviceGetAttribute", &minor, 76, 0);
    printf("probes: a card of capability %d.%d\n", major, minor);

    std::string text = ".version 6.5\n.target sm_75\n";
    for (const char* name : {"bl_probe_dp4a", "bl_probe_mma", "bl_probe_copy", "bl_probe_wgmma"})
        text += std::string(".entry ") + name + "(\n";
    void* reference;
    emulated("cuModuleLoadData", &reference, text.c_str());

    for (const char* target : {"75.ptx", "80.ptx", "90a.ptx", "75.cubin", "80.cubin", "90.cubin", "90a.cubin"}) {
        const std::string image = read(std::string(words[2]) + "/probes." + target);
        void* module;
        if (image.empty() || card.raw("cuModuleLoadData", &module, image.c_str())) continue; // not for this card
        images++;
        auto compare = [&](const char* kernel, const Words& in, size_t out, unsigned blocks, unsigned threads, unsigned shared, int which) {
            const Words want = emulated.run(reference, kernel, in, out, blocks, threads, shared, which);
            const Words got = card.run(module, kernel, in, out, blocks, threads, shared, which);
            size_t differ = 0;
            for (size_t i = 0; i < out; i++) differ += want[i] != got[i];
            if (differ) {
                size_t i = 0;
                while (want[i] == got[i]) i++;
                printf("probes: %s of %s (%d): %zu of %zu words differ, first %zu: %08x on the card, %08x emulated\n", kernel, target, which,
                       differ, out, i, got[i], want[i]);
            }
            wrong += differ != 0;
        };
        std::mt19937 random(1);
        const unsigned blocks = 16, threads = 256;
        for (int round = 0; round < 20; round++) {
            Words in(8 * blocks * threads);
            for (size_t i = 0; i < in.size(); i++) in[i] = i % 8 == 3 ? awkward(random) : random();
            if (round < 16) // every f16 in one of the first 16 rounds
                for (size_t i = 0; i < blocks * threads; i++) in[8 * i + 4] = (uint32_t)i * 16 + (uint32_t)round;
            compare("bl_probe_dp4a", in, 4 * blocks * threads, blocks, threads, 0, 0);
            for (int which = 0; which < 4; which++) compare("bl_probe_mma", in, 4 * blocks * threads, blocks, threads, 0, which);
            compare("bl_probe_copy", in, 4 * blocks * threads, blocks, threads, 32 * threads, 0);
            if (strstr(target, "90a")) compare("bl_probe_wgmma", in, 32 * 128, 1, 128, 64 * 128 + 1024 + 8, 0);
        }
        card("cuModuleUnload", module);
    }
    if (!images) printf("probes: no image fits the card\n");
    printf("probes: %d images, %d comparisons failed\n", images, wrong);
    return !images || wrong;
}
