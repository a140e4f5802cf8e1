// Tests of the emulated GPU itself: that its instructions mean what they should, that it finds what kernels and
// hosts do wrong, and that it finds nothing where nothing is.
//     selftest FOLDER            the folder that tests/cuda/emulator/build.sh made
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <random>
#include <string>
#include <vector>

static int failures, checks;
#define CHECK(condition)                                                              \
    do {                                                                              \
        checks++;                                                                     \
        if (!(condition)) {                                                           \
            failures++;                                                               \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);   \
        }                                                                             \
    } while (0)
#define IS(call, expected)                                                                                   \
    do {                                                                                                     \
        checks++;                                                                                            \
        const int is_result = (call);                                                                        \
        if (is_result != (expected)) {                                                                       \
            failures++;                                                                                      \
            fprintf(stderr, "%s:%d: %s gives %d, not %d\n", __FILE__, __LINE__, #call, is_result, expected); \
        }                                                                                                    \
    } while (0)
#define OK(call) IS(call, 0)

typedef unsigned long long Pointer;
static void* library;
template <class... A> static int cu(const char* name, A... arguments) {
    void* f = dlsym(library, name);
    if (!f) {
        fprintf(stderr, "%s is missing\n", name);
        exit(1);
    }
    return ((int (*)(A...))f)(arguments...);
}
static void set(const char* key, const char* value) { ((void (*)(const char*, const char*))dlsym(library, "bl_emu_set"))(key, value); }
static void set(const char* key, long long value) { set(key, std::to_string(value).c_str()); }
static long long get(const char* key) { return ((long long (*)(const char*))dlsym(library, "bl_emu_get"))(key); }
static std::string fault() { return ((const char* (*)())dlsym(library, "bl_emu_fault"))(); }

/// PTX with nothing but the names that the emulated driver looks for.
static std::string image(const char* version = "6.5", const char* target = "sm_75") {
    std::string text = std::string(".version ") + version + "\n.target " + target + "\n";
    for (const char* name : {"bl_probe_dp4a", "bl_probe_mma", "bl_probe_copy", "bl_probe_wgmma", "bl_fault", "bl_fault_no_barrier", "bl_fault_early"})
        text += std::string(".visible .entry ") + name + "(\n";
    return text;
}
struct Device {
    void *context = nullptr, *module = nullptr;
    explicit Device(int ordinal = 0) {
        OK(cu("cuDevicePrimaryCtxRetain", &context, ordinal));
        OK(cu("cuCtxSetCurrent", context));
        OK(cu("cuModuleLoadData", &module, image().c_str()));
        number = ordinal;
    }
    ~Device() {
        OK(cu("cuCtxSetCurrent", (void*)nullptr));
        OK(cu("cuDevicePrimaryCtxRelease_v2", number));
    }
    void* function(const char* name) const {
        void* f = nullptr;
        OK(cu("cuModuleGetFunction", &f, module, name));
        return f;
    }
    int number;
};
static Pointer allocate(size_t bytes) {
    Pointer p = 0;
    OK(cu("cuMemAlloc_v2", &p, bytes));
    return p;
}
template <class... A> static int launch(void* function, unsigned grid, unsigned block, unsigned shared, void* stream, A... arguments) {
    void* list[] = {&arguments...};
    return cu("cuLaunchKernel", function, grid, 1u, 1u, block, 1u, 1u, shared, stream, (void**)list, (void**)nullptr);
}
struct Params { Pointer in, out; };
struct FaultParams { Pointer data; int which; };

static int s8(uint32_t word, int i) { return (int8_t)(word >> (8 * i)); }
static int u8(uint32_t word, int i) { return (uint8_t)(word >> (8 * i)); }

/// The probes give what plain loops give, in every schedule.
static void instructions() {
    Device device;
    const int n = 64, blocks = 3;
    std::mt19937 random(1);
    std::vector<uint32_t> in(8 * n * blocks), out(4 * n * blocks);
    for (uint32_t& word : in) word = random();
    Params p{allocate(in.size() * 4), allocate(out.size() * 4)};
    OK(cu("cuMemcpyHtoD_v2", p.in, (const void*)in.data(), in.size() * 4));
    for (int order = 0; order < 6; order++) {
        set("order", order);
        OK(cu("cuMemsetD8_v2", p.out, 0xff, out.size() * 4));
        OK(launch(device.function("bl_probe_dp4a"), blocks, n, 0, nullptr, p));
        OK(cu("cuMemcpyDtoH_v2", (void*)out.data(), p.out, out.size() * 4));
        for (int i = 0; i < n * blocks; i++) {
            const uint32_t* w = &in[8 * i];
            uint32_t us = w[2], ss = w[2];
            for (int j = 0; j < 4; j++) us += u8(w[0], j) * s8(w[1], j), ss += s8(w[0], j) * s8(w[1], j);
            CHECK(out[4 * i] == us && out[4 * i + 1] == ss);
        }
        for (int which = 0; which < 4; which++) {
            OK(launch(device.function("bl_probe_mma"), blocks, n, 0, nullptr, p, which));
            OK(cu("cuMemcpyDtoH_v2", (void*)out.data(), p.out, out.size() * 4));
            const int columns = which < 2 ? 32 : 16;
            for (int warp = 0; warp < n * blocks / 32; warp++) {
                int a[16][32], b[32][8];
                for (int lane = 0; lane < 32; lane++) {
                    const uint32_t* w = &in[8 * (32 * warp + lane)];
                    const int g = lane / 4, t = lane % 4;
                    for (int r = 0; r < 4; r++) // the register r of A: rows g, g + 8, then columns 16..
                        for (int i = 0; i < 4; i++)
                            a[g + 8 * (r & 1)][16 * (r >> 1) + 4 * t + i] = which % 2 ? s8(w[r], i) : u8(w[r], i);
                    for (int r = 0; r < 2; r++)
                        for (int i = 0; i < 4; i++) b[16 * r + 4 * t + i][g] = s8(w[4 + r], i);
                }
                for (int lane = 0; lane < 32; lane++) {
                    const uint32_t* w = &in[8 * (32 * warp + lane)];
                    const uint32_t c[4] = {w[6], w[7], w[6] ^ w[7], w[6] + w[7]};
                    for (int i = 0; i < 4; i++) {
                        uint32_t sum = c[i];
                        for (int k = 0; k < columns; k++)
                            sum += (uint32_t)(a[lane / 4 + 8 * (i / 2)][k] * b[k][2 * (lane % 4) + i % 2]);
                        CHECK(out[4 * (32 * warp + lane) + i] == sum);
                    }
                }
            }
        }
        OK(launch(device.function("bl_probe_copy"), blocks, n, 32 * n, nullptr, p));
        OK(cu("cuMemcpyDtoH_v2", (void*)out.data(), p.out, out.size() * 4));
        for (int i = 0; i < n * blocks; i++) {
            const int from = i / n * n + (i + 1) % n;
            for (int j = 0; j < 4; j++) CHECK(out[4 * i + j] == (in[8 * from + j] ^ (from % 2 ? in[8 * from + 4 + j] : 0)));
        }
    }
    set("order", nullptr);
}

/// A tile of a warpgroup: bulk copies, a barrier in memory, twice four products.
static void warpgroups() {
    set("cc", "90");
    {
        Device device;
        std::mt19937 random(2);
        std::vector<uint32_t> in(4 * 128 * 4 + 64 * 32), out(128 * 32);
        for (uint32_t& word : in) word = random();
        Params p{allocate(in.size() * 4), allocate(out.size() * 4)};
        OK(cu("cuMemcpyHtoD_v2", p.in, (const void*)in.data(), in.size() * 4));
        const int8_t* b = (const int8_t*)&in[4 * 128 * 4];
        std::vector<int> expected(out.size());
        for (int t = 0; t < 128; t++)
            for (int i = 0; i < 32; i++) {
                const int warp = t / 32, lane = t % 32, row = lane / 4 + 8 * (i / 2 % 2), column = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
                int sum = 1000 * t + i;
                for (int k = 0; k < 128; k++) {
                    const int step = k / 32, half = k / 16 % 2, from = 32 * warp + 4 * (row % 8) + k / 4 % 4;
                    auto word = [&](int step) { return in[(step * 128 + from) * 4 + 2 * half + row / 8]; };
                    const int a = s8(word(step), k % 4) + s8(~word(step ^ 1) & 0x7f7f7f7fu, k % 4);
                    sum += a * b[128 * column + ((k / 16) ^ (column % 8)) * 16 + k % 16];
                }
                expected[32 * t + i] = sum;
            }
        for (int order = 0; order < 6; order++) {
            set("order", order);
            OK(launch(device.function("bl_probe_wgmma"), 1, 128, 64 * 128 + 1024 + 8, nullptr, p));
            OK(cu("cuMemcpyDtoH_v2", (void*)out.data(), p.out, out.size() * 4));
            CHECK(memcmp(out.data(), expected.data(), out.size() * 4) == 0);
        }
        set("order", nullptr);
    }
    set("cc", nullptr);
}

/// What kernels do wrong is found.
static void kernel_faults() {
    static const struct { int which; unsigned shared; const char* says; } list[] = {
        {0, 1024, "memory that is not there"},   {1, 1024, "memory that is not there"},
        {2, 1000, "past the end of dynamic shared memory"}, {3, 1024, "memory that is not there"},
        {4, 1024, "wait for one another for ever"}, {5, 1024, "meets one at"},
        {6, 1024, "meets __shfl_sync with mask|lanes that have ended"}, {7, 1024, "lacks the calling lane"},
        {8, 1024, "names lanes that have ended"}, {9, 1024, "which the mask"},
        {10, 1024, "meets|lanes that have ended"},                      {11, 1024, "not multiples of 16"},
        {12, 1024, "is not shared memory"},       {13, 1024, "did not wait for"},
        {14, 1024, "a load of 16 bytes"},         {15, 1024, "wait for one another for ever|lanes that have ended"},
        {16, 1024, "wait for one another for ever|lanes that have ended"}, {17, 1024, "memory that is not there"},
    };
    set("survive", 1);
    for (auto& entry : list)
        for (int order = 0; order < 6; order++) {
            set("order", order);
            Device device;
            FaultParams p{allocate(256), entry.which};
            OK(launch(device.function("bl_fault"), 1, 64, entry.shared, nullptr, p));
            IS(cu("cuCtxSynchronize"), 719);
            bool said = false; // one of what stands between bars
            for (std::string rest = entry.says; !rest.empty(); rest = rest.find('|') < rest.size() ? rest.substr(rest.find('|') + 1) : "")
                said |= fault().find(rest.substr(0, rest.find('|'))) != std::string::npos;
            if (!said) {
                failures++;
                fprintf(stderr, "fault %d in schedule %d says: %s\n", entry.which, order, fault().c_str());
            }
            IS(cu("cuMemAlloc_v2", &p.data, (size_t)16), 719); // the context is lost from then on
        }
    set("survive", nullptr);
    // Races show as wrong answers in one schedule or another, and never where there is no race.
    for (const char* name : {"bl_fault_no_barrier", "bl_fault_early"})
        for (int good = 0; good < 2; good++) {
            int wrong = 0;
            for (int order = 0; order < 6; order++) {
                set("order", order);
                Device device;
                FaultParams p{allocate(256), good};
                std::vector<uint32_t> data(64, 7);
                OK(cu("cuMemcpyHtoD_v2", p.data, (const void*)data.data(), (size_t)256));
                OK(launch(device.function(name), 1, 64, 1024, nullptr, p));
                OK(cu("cuMemcpyDtoH_v2", (void*)data.data(), p.data, (size_t)256));
                for (int t = 0; t < 64; t++)
                    if (data[t] != (strcmp(name, "bl_fault_early") == 0 ? 7u : 63u - t)) wrong |= 1 << order;
            }
            CHECK((wrong == 0) == (good == 1));
        }
    set("order", nullptr);
}

/// Which images which devices and drivers take.
static void images() {
    auto load = [](const char* cc, const char* driver, const std::string& text) {
        set("cc", cc);
        set("driver", driver);
        void *context, *module;
        OK(cu("cuDevicePrimaryCtxRetain", &context, 0));
        OK(cu("cuCtxSetCurrent", context));
        const int result = cu("cuModuleLoadData", &module, text.c_str());
        OK(cu("cuDevicePrimaryCtxRelease_v2", 0));
        return result;
    };
    OK(load("75", "12000", image("6.5", "sm_75")));
    OK(load("90", "12000", image("7.0", "sm_80")));
    OK(load("90", "12000", image("8.0", "sm_90a")));
    IS(load("75", "12000", image("7.0", "sm_80")), 209);
    IS(load("100", "12080", image("8.0", "sm_90a")), 209);
    IS(load("90", "12000", image("8.8", "sm_80")), 222);
    IS(load("90", "12090", image("8.8", "sm_80")), 0);
    IS(load("80", "12000", "not an image"), 218);
    auto cubin = [](int flags, int abi = 7, int machine = 190) {
        std::string file(64, '\0');
        memcpy(&file[0], "\177ELF\2", 5);
        file[8] = (char)abi;
        memcpy(&file[18], &machine, 2);
        memcpy(&file[48], &flags, 4);
        return file;
    };
    OK(load("80", "12000", cubin(0x500550)));
    OK(load("86", "12000", cubin(0x500550)));
    OK(load("90", "12000", cubin(0x5a0d5a)));
    IS(load("90", "12000", cubin(0x500550)), 209);
    IS(load("75", "12000", cubin(0x500550)), 209);
    IS(load("80", "12000", cubin(0x500550, 8)), 200);
    IS(load("80", "12000", cubin(0x500550, 7, 62)), 200);
    set("cc", nullptr);
    set("driver", nullptr);
}

/// Streams run as late as they may, in the order that was asked for and no other.
static void streams() {
    Device device;
    void *a, *b, *event;
    OK(cu("cuStreamCreate", &a, 1u));
    OK(cu("cuStreamCreate", &b, 1u));
    OK(cu("cuEventCreate", &event, 0u));
    FaultParams p{allocate(256), 1};
    std::vector<uint32_t> data(64, 1);
    void* kernel = device.function("bl_fault_no_barrier");
    // Without an order the other stream sees what was there before.
    OK(cu("cuMemsetD8_v2", p.data, (unsigned char)0, (size_t)256));
    OK(launch(kernel, 1, 64, 0, a, p));
    OK(cu("cuMemcpyDtoHAsync_v2", (void*)data.data(), p.data, (size_t)256, b));
    CHECK(data[0] == 0 && get("queued") == 1);
    OK(cu("cuStreamSynchronize", a));
    CHECK(get("queued") == 0);
    // With an event it sees the kernel's work.
    OK(cu("cuMemsetD8_v2", p.data, (unsigned char)0, (size_t)256));
    OK(launch(kernel, 1, 64, 0, a, p));
    OK(cu("cuEventRecord", event, a));
    OK(cu("cuStreamWaitEvent", b, event, 0u));
    OK(cu("cuMemcpyDtoHAsync_v2", (void*)data.data(), p.data, (size_t)256, b));
    CHECK(data[0] == 63);
    // The legacy stream waits for blocking streams, not for others.
    void* blocking;
    OK(cu("cuStreamCreate", &blocking, 0u));
    for (void* stream : {a, blocking}) {
        OK(cu("cuMemsetD8_v2", p.data, (unsigned char)0, (size_t)256));
        OK(launch(kernel, 1, 64, 0, stream, p));
        OK(cu("cuMemcpyDtoH_v2", (void*)data.data(), p.data, (size_t)256));
        CHECK(data[0] == (stream == a ? 0u : 63u));
        OK(cu("cuCtxSynchronize"));
    }
    // Pinned memory is read when the stream gets there, pageable memory at the call.
    void* host;
    OK(cu("cuMemHostAlloc", &host, (size_t)256, 0u));
    for (void* from : {host, (void*)data.data()}) {
        memset(from, 1, 256);
        OK(cu("cuMemcpyHtoDAsync_v2", p.data, (const void*)from, (size_t)256, a));
        memset(from, 2, 256);
        OK(cu("cuStreamSynchronize", a));
        uint32_t word;
        OK(cu("cuMemcpyDtoH_v2", (void*)&word, p.data, (size_t)4));
        CHECK(word == (from == host ? 0x02020202u : 0x01010101u));
    }
    // What is freed is waited for first.
    OK(launch(kernel, 1, 64, 0, a, p));
    OK(cu("cuMemFree_v2", p.data));
    IS(cu("cuMemFree_v2", p.data), 1);
    OK(cu("cuMemFreeHost", host));
    OK(cu("cuStreamDestroy_v2", a));
    IS(cu("cuStreamSynchronize", a), 400);
}

/// A capture records; what it forbids breaks it; a graph replays with the parameters of the capture.
static void graphs() {
    Device device;
    void *stream, *graph, *exec;
    OK(cu("cuStreamCreate", &stream, 1u));
    FaultParams p{allocate(256), 1};
    void* kernel = device.function("bl_fault_no_barrier");
    std::vector<uint32_t> data(64);
    OK(cu("cuStreamBeginCapture_v2", stream, 1));
    IS(launch(kernel, 1, 64, 0, stream, p), 900); // it was never loaded
    IS(cu("cuStreamEndCapture", stream, &graph), 901);
    int registers;
    OK(cu("cuFuncGetAttribute", &registers, 4, kernel));
    OK(cu("cuStreamBeginCapture_v2", stream, 1));
    int status = 0;
    OK(cu("cuStreamIsCapturing", stream, &status));
    CHECK(status == 1);
    OK(launch(kernel, 1, 64, 0, stream, p));
    OK(cu("cuStreamEndCapture", stream, &graph));
    OK(cu("cuGraphInstantiateWithFlags", &exec, graph, 0ull));
    for (int i = 0; i < 3; i++) {
        OK(cu("cuMemsetD8_v2", p.data, (unsigned char)0, (size_t)256));
        OK(cu("cuGraphLaunch", exec, stream));
        OK(cu("cuStreamSynchronize", stream));
        OK(cu("cuMemcpyDtoH_v2", (void*)data.data(), p.data, (size_t)256));
        CHECK(data[0] == 63 && data[63] == 0);
    }
    Pointer other = 0;
    void *module, *host;
    const std::string text = image();
    for (int crime = 0; crime < 7; crime++) {
        OK(cu("cuStreamBeginCapture_v2", stream, 1));
        switch (crime) {
        case 0: IS(cu("cuMemAlloc_v2", &other, (size_t)16), 900); break;
        case 1: IS(cu("cuMemFree_v2", p.data), 900); break;
        case 2: IS(cu("cuStreamSynchronize", stream), 900); break;
        case 3: IS(cu("cuCtxSynchronize"), 900); break;
        case 4: IS(cu("cuModuleLoadData", &module, text.c_str()), 900); break;
        case 5: IS(cu("cuMemHostAlloc", &host, (size_t)16, 0u), 900); break;
        case 6: IS(cu("cuMemcpyHtoD_v2", p.data, (const void*)data.data(), (size_t)4), 900); break;
        }
        IS(launch(kernel, 1, 64, 0, stream, p), 901);
        IS(cu("cuStreamEndCapture", stream, &graph), 901);
    }
    // A thread that says so may allocate meanwhile.
    int mode = 2;
    OK(cu("cuStreamBeginCapture_v2", stream, 0));
    OK(cu("cuThreadExchangeStreamCaptureMode", &mode));
    OK(cu("cuMemAlloc_v2", &other, (size_t)16));
    OK(cu("cuThreadExchangeStreamCaptureMode", &mode));
    CHECK(mode == 2);
    OK(launch(kernel, 1, 64, 0, stream, p));
    OK(cu("cuStreamEndCapture", stream, &graph));
    // A blocking stream that captures forbids the legacy stream.
    void* blocking;
    OK(cu("cuStreamCreate", &blocking, 0u));
    OK(cu("cuStreamBeginCapture_v2", blocking, 2));
    IS(launch(kernel, 1, 64, 0, nullptr, p), 906);
    IS(cu("cuStreamEndCapture", blocking, &graph), 901);
}

/// Devices, contexts, limits and everything that a host can get wrong.
static void hosts() {
    set("devices", 2);
    set("cc", "80,75");
    Pointer first;
    {
        Device a(0);
        first = allocate(256);
        void* kernel = a.function("bl_fault_no_barrier");
        FaultParams p{first, 1};
        IS(launch(kernel, 0, 64, 0, nullptr, p), 1);
        IS(launch(kernel, 1, 65, 0, nullptr, p), 1);              // more than its bounds
        IS(launch(kernel, 1, 64, 49153, nullptr, p), 1);          // more than 48 KiB without asking
        OK(cu("cuFuncSetAttribute", kernel, 8, 100 * 1024));
        OK(launch(kernel, 1, 64, 100 * 1024, nullptr, p));
        IS(cu("cuFuncSetAttribute", kernel, 8, 164 * 1024), 1);   // more than the device has
        IS(cu("cuMemcpyHtoD_v2", first + 4, (const void*)&p, (size_t)253), 1);
        void* f;
        IS(cu("cuModuleGetFunction", &f, a.module, "bl_other"), 500);
        Device b(1);
        int value;
        OK(cu("cuDeviceGetAttribute", &value, 75, 1));
        CHECK(value == 7);
        IS(launch(kernel, 1, 64, 0, nullptr, p), 400);            // a function of the other device
        IS(cu("cuMemcpyDtoH_v2", (void*)&p, first, (size_t)4), 1); // its memory
        set("survive", 1);
        OK(launch(b.function("bl_fault_no_barrier"), 1, 64, 0, nullptr, FaultParams{first, 1}));
        IS(cu("cuCtxSynchronize"), 719);
        CHECK(fault().find("memory that is not there") != std::string::npos);
        set("survive", nullptr);
        OK(cu("cuPointerGetAttribute", (void*)&value, 9, first));
        CHECK(value == 0);
    }
    set("devices", nullptr);
    set("cc", nullptr);
    IS(cu("cuMemAlloc_v2", &first, (size_t)16), 201); // no context is current
    {
        Device device;
        set("memory", 1 << 20);
        IS(cu("cuMemAlloc_v2", &first, (size_t)2 << 20), 2);
        set("memory", nullptr);
        set("fail_allocation", get("allocations") + 2);
        OK(cu("cuMemAlloc_v2", &first, (size_t)16));
        IS(cu("cuMemAlloc_v2", &first, (size_t)16), 2);
        set("fail_allocation", nullptr);
        // The device goes at the next launch, and every call says so.
        FaultParams p{allocate(256), 1};
        set("lose_at_launch", get("launches") + 1);
        OK(launch(device.function("bl_fault_no_barrier"), 1, 64, 0, nullptr, p));
        IS(cu("cuCtxSynchronize"), 700);
        IS(cu("cuMemFree_v2", p.data), 700);
        set("lose_at_launch", nullptr);
        // Freed memory is gone, for kernels too.
    }
    {
        Device device;
        FaultParams p{allocate(256), 1};
        OK(cu("cuMemFree_v2", p.data));
        set("survive", 1);
        OK(launch(device.function("bl_fault_no_barrier"), 1, 64, 0, nullptr, p));
        IS(cu("cuCtxSynchronize"), 719);
        set("survive", nullptr);
    }
    CHECK(get("live_allocations") == 0 && get("retained") == 0 && get("live_streams") == 0);
}

int main(int count, char** words) {
    if (count != 2) return 2;
    library = dlopen((std::string(words[1]) + "/libcuda.so.1").c_str(), RTLD_NOW);
    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    IS(cu("cuCtxSynchronize"), 3); // before cuInit
    set("devices", 0ll);
    IS(cu("cuInit", 0u), 100);
    set("devices", nullptr);
    OK(cu("cuInit", 0u));
    instructions();
    warpgroups();
    kernel_faults();
    images();
    streams();
    graphs();
    hosts();
    printf("emulated GPU: %d checks, %d failed\n", checks, failures);
    return failures != 0;
}
