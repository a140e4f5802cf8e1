// The emulated driver: what stands behind the cu... functions of this libcuda.so.1. One lock guards all of it, also
// while a kernel runs.
//
// Work on a stream is queued, and runs only when somebody waits for it (Settings::lazy): as late as the rules allow,
// so that whatever relies on luck instead of on an order fails every time.
#pragma once

#include "engine.hpp"

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace emu::driver {

enum Result : int {
    SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, DEINITIALIZED = 4, NO_DEVICE = 100,
    INVALID_DEVICE = 101, INVALID_IMAGE = 200, INVALID_CONTEXT = 201, NO_BINARY_FOR_GPU = 209, INVALID_PTX = 218,
    UNSUPPORTED_PTX_VERSION = 222, INVALID_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700,
    LAUNCH_OUT_OF_RESOURCES = 701, CONTEXT_IS_DESTROYED = 709, LAUNCH_FAILED = 719, NOT_SUPPORTED = 801,
    CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901, CAPTURE_UNMATCHED = 903, CAPTURE_UNJOINED = 904,
    CAPTURE_ISOLATION = 905, CAPTURE_IMPLICIT = 906, CAPTURED_EVENT = 907, UNKNOWN = 999,
};
const char* result_name(int code);
const char* result_text(int code);

/// What the tests choose: from the environment (BL_EMU_<KEY> in capitals) at the first cuInit, and by bl_emu_set.
struct Choices {
    std::map<std::string, std::string> text;
    long long number(const char* key, long long otherwise) const;
};
extern Choices choices;
/// Counted events: "launches", "allocations", "calls:cuMemAlloc_v2", ...
extern std::map<std::string, long long> counters;

using Pointer = unsigned long long;

struct Context;
struct Stream;
struct Capture;

/// A piece of queued work, and the pieces of other streams that come before it.
struct Work {
    std::function<Result()> run;
    std::vector<std::pair<Stream*, uint64_t>> after;
};

struct Stream {
    Context* context;
    bool blocking; ///< orders itself with the legacy stream
    std::deque<Work> queue;
    uint64_t issued = 0, done = 0;
    Capture* capture = nullptr;
};

/// Work between cuStreamBeginCapture and EndCapture; the order of the calls is an order that the graph allows.
struct Capture {
    Stream* origin;
    int mode;
    std::thread::id thread;
    std::vector<std::function<Result()>> work;
    std::set<Stream*> streams;
    bool broken = false;
};

struct Graph {
    std::vector<std::function<Result()>> work;
};
struct GraphExec {
    Graph graph;
    Context* context;
};

struct Event {
    Context* context = nullptr;
    Stream* stream = nullptr;
    uint64_t place = 0; ///< done when stream->done has reached it
    Capture* capture = nullptr;
    std::shared_ptr<double> time = std::make_shared<double>(0); ///< queued work writes it, maybe after the event's end
};

struct Function;
struct Module {
    Context* context;
    std::string image;
    bool is_ptx;
    int target; ///< sm number of the image, 10 * major + minor
    std::map<std::string, std::unique_ptr<Function>> functions;
};
struct Function {
    Module* module;
    const Kernel* kernel;
    long long max_dynamic_shared = 48 * 1024;
    bool loaded = false; ///< the driver loads a function at its first use, which a capture does not survive
};

struct Allocation {
    Context* context;
    size_t bytes, rounded, reserved;
    char* pages;
};

struct Context {
    int device;
    int retained = 0;
    Result lost = SUCCESS; ///< once set, every call that touches the device gives it
    std::unique_ptr<Stream> legacy;
    std::set<Stream*> streams; ///< the legacy one too
    std::set<Module*> modules;
};

extern std::recursive_mutex lock;
extern std::map<Pointer, Allocation> allocations;
extern std::map<char*, size_t> pinned;
extern std::set<Capture*> captures;
extern bool initialized;

/// Handles that exist, so that a stale one is an error and not a crash.
struct Handles {
    std::set<const void*> live;
    bool has(const void* p) const { return live.count(p) != 0; }
};
extern Handles streams, events, modules, functions, graphs, graph_execs;

int device_count();
/// Compute capability of a device, 10 * major + minor.
int capability(int device);
/// Shared memory of a multiprocessor of that capability in KiB, and the most bytes that a block may ask for.
int shared_of_multiprocessor(int cc);
long long shared_optin(int device);
Context& primary(int device);
std::vector<Context*>& context_stack();
Context* current();

/// Whether cuInit succeeded, and the process is not at its end (the choice `deinitialized`).
Result started();
/// The checks at the head of most calls: initialised, a context is current, exists and is not lost.
Result ready(Context*& context);
/// The stream of a handle: null, 1 and 2 are the context's own.
Result find_stream(Context* context, void* handle, Stream*& stream);

Result enqueue(Stream* stream, std::function<Result()> run);
/// Runs what is queued up to and with `place`.
Result drain(Stream* stream, uint64_t place);
Result drain(Context* context);
/// What cuThreadExchangeStreamCaptureMode sets.
int& thread_capture_mode();
/// For calls that a capture forbids: breaks the captures concerned.
Result forbid_in_capture(Context* context, bool uses_legacy = false);

/// Makes the context's memory accessible, and that of all others not.
void open_memory(Context* context);
void close_memory();
Result allocate(Context* context, size_t bytes, Pointer* out);
Result release(Context* context, Pointer pointer);
void release_all(Context* context);
/// The allocation that holds these bytes, if one of this context does.
const Allocation* find_memory(Context* context, Pointer pointer, size_t bytes);
long long total_memory();
long long used_memory(int device);

Result load(Context* context, const void* image, Module** out);

} // namespace emu::driver
